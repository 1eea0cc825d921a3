"""Antialiased resizes as two products, one along each axis, for exported graphs.

Runtimes disagree about antialiased resizing, but not about products; and these sizes may be free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def resize_by_products(maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize maps (B, C, h, w), as `F.interpolate` with `antialias` and without `align_corners`.

    Args:
        maps: of any float dtype.
        size: (height, width), also of a traced graph.
        mode: `bicubic` or `bilinear`.
    """
    weights = _WEIGHTS[mode]
    down, across = weights(maps.shape[-2], size[0]), weights(maps.shape[-1], size[1])
    return (down.to(maps.dtype) @ maps) @ across.to(maps.dtype).t()


def bicubic_weights(old: int, new: int) -> Tensor:
    """Weights (new, old) float32 of an antialiased bicubic resize along one axis.

    The kernel of Keys (1981) with a = -0.5, stretched where the axis shrinks; rows sum to 1. At the
    old size it is the identity.
    """
    x = _distances(old, new)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def bilinear_weights(old: int, new: int) -> Tensor:
    """As `bicubic_weights`, with the triangle as the kernel."""
    weights = (1 - _distances(old, new)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


_WEIGHTS: dict[str, Callable[[int, int], Tensor]] = {
    "bicubic": bicubic_weights,
    "bilinear": bilinear_weights,
}


def _distances(old: int, new: int) -> Tensor:
    """Distances (new, old) of new places from old ones; in new cells where the axis shrinks."""
    step = old / new
    centre = (torch.arange(new, dtype=torch.float32) + 0.5) * step
    place = torch.arange(old, dtype=torch.float32) + 0.5
    return ((place - centre[:, None]) / torch.sym_max(step, 1.0)).abs()
