"""Saves and restores model, optimiser and moving average as named tensors.

Optimiser state is stored by parameter name, so it fits any number of processes and any sharding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from setr.checkpoint import State
from setr.training.optim import MovingAverage


def snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None
) -> dict[str, Tensor]:
    """All tensors of a run by name, sharing their memory."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
    if average:
        tensors |= {f"ema/{name}": value for name, value in average.state.items()}
    return tensors


def restore(
    state: State, model: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None
) -> None:
    """Restore the tensors of a state; a moving average that it lacks starts at its weights.

    Raises:
        SetrError: the state is of another model.
    """
    for name, value in model.state_dict().items():
        state.read(f"model/{name}", value)
    if average:
        _restore_average(state, average)
    saved: dict[str, list[str]] = {}
    for name in state.names():
        if name.startswith("optimizer/"):
            parameter_name, _, key = name.removeprefix("optimizer/").rpartition("/")
            saved.setdefault(parameter_name, []).append(key)
    for name, parameter in model.named_parameters():
        for key in saved.get(name, ()):
            # moments have the parameter's shape; a step count is a scalar, on the CPU unless fused
            alike = state.shape(f"optimizer/{name}/{key}") == list(parameter.shape)
            counts = parameter.device if optimizer.defaults.get("fused") else None
            value = torch.zeros_like(parameter) if alike else torch.zeros((), device=counts)
            state.read(f"optimizer/{name}/{key}", value)
            optimizer.state[parameter][key] = value.detach()


def _restore_average(state: State, average: MovingAverage) -> None:
    kept = any(name.startswith("ema/") for name in state.names())
    for name, value in average.state.items():
        state.read(f"ema/{name}" if kept else f"model/{name}", value)


@contextlib.contextmanager
def tested_weights(state: State, model: nn.Module) -> Iterator[None]:
    """Context manager in which a model has those weights of a state that were tested.

    They are its moving average if it has one, whether or not the run keeps one now.
    """
    average = MovingAverage(model, decay=0.0)
    _restore_average(state, average)
    with average.inside(model):
        yield
