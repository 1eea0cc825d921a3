"""Runs that are stopped, killed and continued, and what they leave behind."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from setr.checkpoint import newest_state
from setr.config import Config
from setr.engine import train
from setr.errors import INTERRUPTED, SetrError
from setr.training.run import Run
from setr.training.runfolder import LAST


def with_train(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let runs get SIGTERM during a step."""
    original = Run.train_step

    def stopping(self, images, masks):
        parts = original(self, images, masks)
        if self.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return parts

    monkeypatch.setattr(Run, "train_step", stopping)


def stopped_and_resumed(config: Config, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Train to step `at`, stop, continue to the end."""
    with monkeypatch.context() as patch:
        stop_after(patch, at)
        with pytest.raises(SetrError, match="--resume") as caught:
            train(config)
    assert caught.value.code == INTERRUPTED
    train(config, resume=True)


def killed_and_resumed(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    last_words: Callable[[Run], object] = lambda run: None,
) -> None:
    """Train to step `at`, die without saving, continue to the end from the last saved state."""
    original = Run.train_step

    def dying(self, images, masks):
        if self.step == at:
            last_words(self)
            raise KeyboardInterrupt
        return original(self, images, masks)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config, resume=True)


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, optimiser and moving average of the newest state."""
    state = newest_state(folder / LAST)
    assert state is not None
    tensors = {name: torch.zeros(state.shape(name)) for name in state.names()}
    for name, tensor in tensors.items():
        state.read(name, tensor)
    return tensors


def assert_same_weights(one: Config | Path, other: Config | Path) -> None:
    first, second = (
        final_state(run if isinstance(run, Path) else Path(run.out)) for run in (one, other)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def log_lines(config: Config) -> list[dict]:
    """The lines of the steps."""
    text = (Path(config.out) / "log.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]
