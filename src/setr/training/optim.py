"""Optimiser groups, the learning-rate schedule, and the moving average of the weights.

Heads learn `head_lr_factor` times faster than the encoder (section 4.1 and the authors' code);
layer-wise decay makes early blocks learn slower. The schedule is a pure function of the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from setr.config import OptimConfig
from setr.encoder import TOKENS
from setr.model import SETR
from setr.training.parallel import local

FUSED = True
"""Update all weights in one pass over memory; torch has it for CUDA and for CPUs."""
NO_DECAY = ("pos_embed", *TOKENS, "gamma")


def build_optimizer(model: SETR, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over groups of equal learning-rate factor and weight decay.

    Every group carries `lr_factor`, a factor on its peak rate; `set_lr` reads it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or any(word in name for word in NO_DECAY)
        spared = plain and not config.decay_norms
        key = (_lr_factor(name, model, config), 0.0 if spared else config.weight_decay)
        groups.setdefault(key, []).append(parameter)
    listed = [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if config.name == "sgd":
        # torch 2.13 has no fused SGD for sharded weights
        fused = FUSED and not any(isinstance(p, DTensor) for p in model.parameters())
        return torch.optim.SGD(listed, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(listed, lr=config.lr, fused=FUSED)


def _lr_factor(name: str, model: SETR, config: OptimConfig) -> float:
    if name.startswith("neck."):
        return config.neck_lr_factor
    if not name.startswith("encoder."):
        return config.head_lr_factor
    return float(config.layer_decay ** model.layer_depth(name))


def learning_rate(config: OptimConfig, step: int, steps: int, factor: float = 1.0) -> float:
    """The rate of a group at a step: linear warm-up, then polynomial decay to `min_lr`.

    The decay starts at `lr` times the group's factor and ends at `min_lr` for all groups, as in the
    authors' code (mmcv's "poly" policy); a group that starts lower stays where it is.
    """
    peak = config.lr * factor
    low = min(config.min_lr, peak)
    rate = low + (peak - low) * (1 - step / steps) ** config.power
    return rate * min(1.0, (step + 1) / (config.warmup_steps + 1))


def set_lr(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> None:
    """Give every group its rate at a step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps, group["lr_factor"])


class MovingAverage:
    """Exponential moving average of a model's weights and buffers.

    Args:
        model: the model that is averaged.
        decay: share kept per step; it rises to this value over the first steps, (1+t)/(10+t), so
            that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights after optimiser step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        floats, targets = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                floats.append(local(self.state[name]))
                targets.append(local(value))
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(floats, targets, 1 - decay)

    @contextlib.contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Inside the `with` block the model has the averaged weights."""
        kept = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(kept)
