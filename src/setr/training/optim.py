"""Parameter groups, the learning-rate schedule, and the moving average of the weights.

Heads have `head_lr_factor` times the learning rate of the encoder (section 4.1 and the authors'
code); layer-wise decay lowers it for early blocks. The schedule is a pure function of the step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from setr.config import OptimConfig
from setr.layers.positions import PREFIX_TOKENS
from setr.model import SETR
from setr.training.parallel import local

FUSED = True
"""Use torch's fused optimisers, which exist for CUDA and CPUs."""
NO_DECAY = (
    *("pos_embed", "relative_position_bias_table", "rel_pos_h", "rel_pos_w", "rope.freqs"),
    *PREFIX_TOKENS,
    *("class_tokens", "gamma"),
)
"""Words in the names of parameters that are spared weight decay, as those of one axis are.

`class_tokens` are Segmenter's, as in its authors' code.
"""


def build_optimizer(model: SETR, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW, with parameters grouped by learning-rate factor and weight decay.

    `set_lr` multiplies the peak learning rate by the `lr_factor` of a group. Until it is called, or
    with a scheduler of torch, a group has its peak.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or any(word in name for word in NO_DECAY)
        spared = plain and not config.decay_norms
        key = (_lr_factor(name, model, config), 0.0 if spared else config.weight_decay)
        groups.setdefault(key, []).append(parameter)
    param_groups = [
        {"params": parameters, "lr": config.lr * factor, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if config.name == "sgd":
        # torch 2.13 has no fused SGD for sharded weights
        fused = FUSED and not any(isinstance(p, DTensor) for p in model.parameters())
        return torch.optim.SGD(param_groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(param_groups, lr=config.lr, fused=FUSED)


def _lr_factor(name: str, model: SETR, config: OptimConfig) -> float:
    if name.startswith("neck."):
        return config.neck_lr_factor
    if not name.startswith("encoder."):
        return config.head_lr_factor
    return float(config.layer_decay ** model.layer_depth(name))


def learning_rate(config: OptimConfig, step: int, steps: int, factor: float = 1.0) -> float:
    """Learning rate of a parameter group: linear warm-up, then decay to `min_lr`.

    The decay starts at `lr` times the group's factor and ends at `min_lr` for all groups, as in the
    authors' code (mmcv's "poly" policy); a group that starts below `min_lr` does not decay. The
    cosine is that of SGDR without restarts (Loshchilov and Hutter, ICLR 2017, equation 5).
    """
    peak = config.lr * factor
    low = min(config.min_lr, peak)
    if config.schedule == "cosine":
        left = (1 + math.cos(math.pi * step / steps)) / 2
    else:
        left = (1 - step / steps) ** config.power
    rate = low + (peak - low) * left
    return rate * min(1.0, (step + 1) / (config.warmup_steps + 1))


def set_lr(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> None:
    """Set the learning rate of every parameter group for a step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps, group["lr_factor"])


class MovingAverage:
    """Exponential moving average of a model's weights and buffers.

    Args:
        model: the model to average.
        decay: decay per step; rises to this value as (1+t)/(10+t) over the first steps, so that the
            initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average after optimiser step number `step` (from 0)."""
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
        """Context manager in which the model has the averaged weights."""
        kept = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(kept)
