"""Dynamic batching: who runs with whom, who waits, who is dropped."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from setr.errors import SetrError
from setr.serve.batching import MAX_FAULTS, Batcher, DeadlinePassed
from tests.serving import until


class Machine:
    """Doubles numbers, once the gate is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[tuple[Any, list[int]]] = []
        self.still_wanted: list[bool] = []

    def run(self, key: Any, items: Sequence[Any], wanted: Callable[[], bool]) -> list[Any]:
        self.batches.append((key, list(items)))
        assert self.open.wait(120)
        self.still_wanted.append(wanted())
        if key == "broken":
            raise ValueError("broken")
        if key == "refused":
            raise SetrError("another image, please")
        return [ValueError("odd one") if item < 0 else 2 * item for item in items]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def batcher(machine: Machine) -> Iterator[Batcher]:
    batcher = Batcher(machine.run, size=lambda key: 3, wait=0.02)
    yield batcher
    end(machine, batcher)


def end(machine: Machine, batcher: Batcher) -> None:
    machine.open.set()
    batcher.close()
    batcher.thread.join(120)
    assert not batcher.thread.is_alive()


def soon() -> float:
    return time.monotonic() + 120


def occupy(machine: Machine, batcher: Batcher) -> None:
    """Let the thread hold one job, so that others gather behind it."""
    batcher.submit("first", 0, soon())
    until(lambda: machine.batches)


def test_one_key_runs_together_and_the_oldest_key_first(machine, batcher):
    occupy(machine, batcher)
    keys = ["small", "large", "small", "small", "large", "small"]
    jobs = [batcher.submit(key, i, soon()) for i, key in enumerate(keys, 1)]
    machine.open.set()
    assert [job.future.result(120) for job in jobs] == [2, 4, 6, 8, 10, 12]
    assert machine.batches[1:] == [("small", [1, 3, 4]), ("large", [2, 5]), ("small", [6])]
    assert [job.batch for job in jobs] == [3, 2, 3, 3, 2, 1]
    assert all(job.waited > 0 for job in jobs)


def test_an_idle_machine_waits_for_company(machine):
    batcher = Batcher(machine.run, size=lambda key: 2, wait=120)
    machine.open.set()
    jobs = [batcher.submit("a", i, soon()) for i in range(2)]
    assert [job.future.result(60) for job in jobs] == [0, 2]
    assert machine.batches == [("a", [0, 1])]
    end(machine, batcher)


def test_company_is_not_waited_for_without_end(machine, batcher):
    machine.open.set()
    assert batcher.submit("a", 1, soon()).future.result(120) == 2


def test_whoever_left_or_is_late_is_dropped(machine, batcher):
    occupy(machine, batcher)
    stays = batcher.submit("a", 1, soon())
    late = batcher.submit("a", 2, time.monotonic() - 1)
    left = batcher.submit("a", 3, soon())
    left.cancelled = True
    cancelled = batcher.submit("a", 4, soon())
    assert cancelled.future.cancel()
    machine.open.set()
    assert stays.future.result(120) == 2
    for job in (late, left):
        with pytest.raises(DeadlinePassed):
            job.future.result(120)
    assert machine.batches[1:] == [("a", [1])]
    assert batcher.dropped == 2


def test_what_is_cancelled_leaves_at_once_though_the_machine_is_busy(machine, batcher):
    class Image:
        pass

    occupy(machine, batcher)
    stays = batcher.submit("a", 1, soon())
    item = Image()
    kept = weakref.ref(item)
    for key in ("a", "alone"):
        batcher.cancel(batcher.submit(key, item, soon()))
    del item
    assert (len(batcher), batcher.dropped, kept()) == (1, 2, None)
    machine.open.set()
    assert stays.future.result(120) == 2
    batcher.cancel(stays)  # it has its answer
    assert batcher.dropped == 2


def test_a_running_batch_learns_that_nobody_waits(machine, batcher):
    job = batcher.submit("a", 1, soon())
    until(lambda: machine.batches)
    batcher.cancel(job)
    machine.open.set()
    job.future.result(120)
    assert machine.still_wanted == [False]


def test_a_fault_is_the_outcome_of_its_batch_or_item_alone(machine, batcher):
    machine.open.set()
    broken = batcher.submit("broken", 1, soon())
    odd, even = batcher.submit("a", -1, soon()), batcher.submit("a", 2, soon())
    with pytest.raises(ValueError, match="broken"):
        broken.future.result(120)
    with pytest.raises(ValueError, match="odd one"):
        odd.future.result(120)
    assert even.future.result(120) == 4


def test_closing_abandons_what_waits_and_what_runs(machine, batcher):
    running = batcher.submit("first", 0, soon())
    until(lambda: machine.batches)
    waiting = [batcher.submit("a", i, soon()) for i in range(5)]
    batcher.close()
    with pytest.raises(RuntimeError):
        batcher.submit("a", 1, soon())
    machine.open.set()
    batcher.thread.join(120)
    assert not batcher.thread.is_alive()
    assert machine.still_wanted == [False]
    assert running.future.result(0) == 0
    for job in waiting:
        with pytest.raises(DeadlinePassed):
            job.future.result(0)
    assert batcher.trouble(1.0) is None  # it was meant to end


# --- what nothing may stop ------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [[], [1, 2], None, SystemExit(1)])
def test_nothing_that_a_batch_does_ends_the_thread(machine, batcher, answers, monkeypatch):
    def run(key, items, wanted):
        if isinstance(answers, BaseException):
            raise answers
        return answers

    machine.open.set()
    with monkeypatch.context() as patch:
        patch.setattr(batcher, "_run", run)
        with pytest.raises((RuntimeError, TypeError)):
            batcher.submit("a", 1, soon()).future.result(120)
    assert batcher.submit("a", 1, soon()).future.result(120) == 2


def test_figures_that_cannot_be_noted_do_not_end_the_thread(machine, capfd):
    def observe(key, jobs, seconds):
        raise ValueError("no such label")

    batcher = Batcher(machine.run, size=lambda key: 1, wait=0, observe=observe)
    machine.open.set()
    for i in range(2):
        assert batcher.submit("a", i, soon()).future.result(120) == 2 * i
    end(machine, batcher)
    assert "no such label" in capfd.readouterr().err


def test_faults_in_a_row_are_trouble_until_one_batch_is_done(machine, batcher):
    def ask(key, item):
        job = batcher.submit(key, item, soon())
        job.future.exception(120)

    machine.open.set()
    for _ in range(MAX_FAULTS - 1):
        ask("broken", 1)
    ask("a", 1)
    for _ in range(MAX_FAULTS):
        assert batcher.trouble(60.0) is None
        ask("broken", 1)
    assert "faults" in batcher.trouble(60.0)
    ask("a", 1)
    assert batcher.trouble(60.0) is None
    for _ in range(MAX_FAULTS):
        ask("refused", 1)
    assert batcher.trouble(60.0) is None  # their images were to blame
    for _ in range(MAX_FAULTS):
        ask("broken", 1)
        ask("refused", 1)
    assert batcher.trouble(60.0) is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_batch_that_never_ends_and_a_thread_that_did_are_trouble(machine, batcher):
    batcher.submit("a", 1, soon())
    until(lambda: machine.batches)
    assert batcher.trouble(3600.0) is None
    until(lambda: batcher.trouble(0.01) is not None)
    assert "computing for more than" in batcher.trouble(0.01)
    machine.open.set()
    until(lambda: batcher.trouble(0.01) is None)
    dead = Batcher(machine.run, size=lambda key: 1 // 0, wait=0)
    dead.submit("a", 1, soon())
    until(lambda: dead.trouble(3600.0) is not None)
    assert "ended" in dead.trouble(3600.0)
