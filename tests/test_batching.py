"""Dynamic batching: who runs with whom, who waits, who is dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from setr.serve.batching import Batcher, DeadlinePassed
from tests.serving import until


class Machine:
    """Doubles numbers, once the gate is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[tuple[Any, list[int]]] = []
        self.still_wanted: list[bool] = []

    def run(self, key: Any, items: Sequence[Any], wanted: Callable[[], bool]) -> list[Any]:
        self.batches.append((key, list(items)))
        assert self.open.wait(20)
        self.still_wanted.append(wanted())
        if key == "broken":
            raise ValueError("broken")
        return [ValueError("odd one") if item < 0 else 2 * item for item in items]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def batcher(machine: Machine) -> Iterator[Batcher]:
    batcher = Batcher(machine.run, size=lambda key: 3, wait=0.02)
    yield batcher
    machine.open.set()
    batcher.close()


def soon() -> float:
    return time.monotonic() + 20


def occupy(machine: Machine, batcher: Batcher) -> None:
    """Let the thread hold one job, so that others gather behind it."""
    batcher.submit("first", 0, soon())
    until(lambda: machine.batches)


def test_one_key_runs_together_and_the_oldest_key_first(machine, batcher):
    occupy(machine, batcher)
    keys = ["small", "large", "small", "small", "large", "small"]
    jobs = [batcher.submit(key, i, soon()) for i, key in enumerate(keys, 1)]
    machine.open.set()
    assert [job.future.result(20) for job in jobs] == [2, 4, 6, 8, 10, 12]
    assert machine.batches[1:] == [("small", [1, 3, 4]), ("large", [2, 5]), ("small", [6])]
    assert [job.batch for job in jobs] == [3, 2, 3, 3, 2, 1]
    assert all(job.waited > 0 for job in jobs)


def test_an_idle_machine_waits_for_company(machine, batcher):
    machine.open.set()
    jobs = [batcher.submit("a", i, soon()) for i in range(2)]
    assert [job.future.result(20) for job in jobs] == [0, 2]
    assert machine.batches == [("a", [0, 1])]


def test_whoever_left_or_is_late_is_dropped(machine, batcher):
    occupy(machine, batcher)
    stays = batcher.submit("a", 1, soon())
    late = batcher.submit("a", 2, time.monotonic() - 1)
    left = batcher.submit("a", 3, soon())
    left.abandoned = True
    cancelled = batcher.submit("a", 4, soon())
    assert cancelled.future.cancel()
    machine.open.set()
    assert stays.future.result(20) == 2
    for job in (late, left):
        with pytest.raises(DeadlinePassed):
            job.future.result(20)
    assert machine.batches[1:] == [("a", [1])]
    assert batcher.dropped == 2


def test_a_running_batch_learns_that_nobody_waits(machine, batcher):
    job = batcher.submit("a", 1, soon())
    until(lambda: machine.batches)
    job.abandoned = True
    machine.open.set()
    job.future.result(20)
    assert machine.still_wanted == [False]


def test_a_fault_is_the_outcome_of_its_batch_or_item_alone(machine, batcher):
    machine.open.set()
    broken = batcher.submit("broken", 1, soon())
    odd, even = batcher.submit("a", -1, soon()), batcher.submit("a", 2, soon())
    with pytest.raises(ValueError, match="broken"):
        broken.future.result(20)
    with pytest.raises(ValueError, match="odd one"):
        odd.future.result(20)
    assert even.future.result(20) == 4


def test_closing_finishes_what_waits(machine, batcher):
    occupy(machine, batcher)
    jobs = [batcher.submit("a", i, soon()) for i in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    machine.open.set()
    closing.join(20)
    assert [job.future.result(0) for job in jobs] == [0, 2, 4, 6, 8]
    with pytest.raises(RuntimeError):
        batcher.submit("a", 1, soon())
