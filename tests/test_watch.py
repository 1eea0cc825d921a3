"""A process that goes silent is named; one that leaves is not missed."""

from __future__ import annotations

import time

import pytest
import torch.distributed as dist

import setr.processes.watch as watch
from setr.errors import SetrError
from setr.processes.watch import Watch


class Clock:
    """The time that silence is measured in; it moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(watch, "BEAT", 0.02)
    monkeypatch.setattr(watch, "GRACE", 600.0)
    store = dist.HashStore()
    store.set("host/0", "first")
    store.set("host/1", "second")
    return store


@pytest.fixture
def watches(store):
    """Those of two processes; what a test starts is ended with it, also where it fails."""
    both = Watch(store, 0, 2, 60.0), Watch(store, 1, 2, 60.0)
    yield both
    for one in both:
        if one._thread.ident:
            one.leave("")


def wait_for_beats(store, *ranks: int) -> None:
    """Until each of the processes has looked at its neighbour once more, from start to end."""
    wanted = {rank: beats(store, rank) + 2 for rank in ranks}
    deadline = time.monotonic() + 60
    while any(beats(store, rank) < number for rank, number in wanted.items()):
        assert time.monotonic() < deadline, "a heartbeat has stopped"
        time.sleep(0.01)


def beats(store, rank: int) -> int:
    return int(store.get(f"beat/{rank}")) if store.check([f"beat/{rank}"]) else 0


@pytest.mark.parametrize("given", ["soon", "0", "nan", "-5", "inf"])
def test_an_impossible_silence_is_refused(given):
    with pytest.raises(SetrError, match=f"SETR_SILENCE={given}: give seconds, at least 2"):
        watch.silence_of({"SETR_SILENCE": given})
    assert watch.silence_of({"SETR_SILENCE": "15"}) == 15
    assert watch.silence_of({"SETR_SILENCE": ""}) == watch.silence_of({}) == 20


def test_a_silent_process_is_named(store, watches, clock):
    first, _ = watches
    first.start()
    wait_for_beats(store, 0)
    clock.now += 59
    wait_for_beats(store, 0)
    assert not first.lost
    clock.now += 2
    line = first.find_lost()
    assert line is not None
    assert line.startswith("lost rank 1 on second")


def test_what_stops_a_process_is_told_to_the_others(watches):
    first, second = watches
    first.start()
    second.start()
    second.leave("image.png: broken\nimage file")
    line = first.find_lost()
    assert line is not None
    assert line.startswith("rank 1 on ")
    assert line.endswith("stopped: image.png: broken image file")


def test_living_and_leaving_processes_are_not_missed(store, watches, clock):
    first, second = watches
    first.start()
    second.start()
    for _ in range(5):
        wait_for_beats(store, 0, 1)  # both have beaten since the clock moved …
        wait_for_beats(store, 0, 1)  # … and seen it
        clock.now += 40
    assert not first.lost
    assert not second.lost
    second.leave("")
    for _ in range(2):
        wait_for_beats(store, 0)
        clock.now += 200
    wait_for_beats(store, 0)
    assert not first.lost


def test_a_process_that_hangs_is_ended(store, watches, clock, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(watch, "GRACE", 0.1)
    monkeypatch.setattr(watch.os, "_exit", ended.append)
    first, _ = watches
    first.start()
    wait_for_beats(store, 0)
    clock.now += 61
    first._thread.join(60)
    assert ended == [1]
    assert "lost rank 1" in capsys.readouterr().err
