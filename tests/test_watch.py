"""A process that goes silent is named; one that leaves is not missed."""

from __future__ import annotations

import pytest
import torch.distributed as dist

import setr.watch as watch
from setr.watch import Watch


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(watch, "BEAT", 0.02)
    monkeypatch.setattr(watch, "SILENCE", 0.5)
    monkeypatch.setattr(watch, "GRACE", 60.0)
    store = dist.HashStore()
    store.set("host/0", "first")
    store.set("host/1", "second")
    return store


def test_a_silent_process_is_named(store):
    first = Watch(store, 0, 2)
    first.start()
    line = first.find_lost()
    first.leave("")
    assert line is not None
    assert line.startswith("lost rank 1 on second")


def test_what_stops_a_process_is_told_to_the_others(store):
    first, second = Watch(store, 0, 2), Watch(store, 1, 2)
    first.start()
    second.start()
    second.leave("image.png: broken\nimage file")
    line = first.find_lost()
    first.leave("")
    assert line is not None
    assert line.startswith("rank 1 on ")
    assert line.endswith("stopped: image.png: broken image file")


def test_living_and_leaving_processes_are_not_missed(store):
    first, second = Watch(store, 0, 2), Watch(store, 1, 2)
    first.start()
    second.start()
    assert not first._found.wait(1.0)
    second.leave("")
    assert not first._found.wait(1.0)
    first.leave("")


def test_a_process_that_hangs_is_ended(store, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(watch, "GRACE", 0.1)
    monkeypatch.setattr(watch.os, "_exit", ended.append)
    first = Watch(store, 0, 2)
    first.start()
    first._thread.join(30)
    assert ended == [1]
    assert "lost rank 1" in capsys.readouterr().err
