"""Rows of bilinearly resized maps, computed from the rows of the source that they need.

Shapes: B batch, K classes, h x w source, H x W result, r rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.kernels.row_blocks import source_rows

MAX_PHASES = 8
"""Maximum number of phases in `_resize_columns`; with more, each has too few columns."""


def resize_rows(
    fetch: Callable[[int, int], Tensor],
    source: tuple[int, int],
    target: tuple[int, int],
    first: int,
    last: int,
) -> Tensor:
    """Rows first .. last-1 of a bilinear resize (align_corners=False) from source to target size.

    Args:
        fetch: (first, last) -> rows first .. last-1 of the source map, float32.
        source: (h, w) of the source map.
        target: (H, W) after the resize.
        first: first row of the result.
        last: row after the last.
    """
    if source[0] == target[0]:
        rows = fetch(first, last)
    else:
        lower, upper, share = source_rows(first, last, source[0], target[0])
        top = int(lower[0])
        block = fetch(top, int(upper[-1]) + 1)
        lower, upper, share = (
            x.to(block.device, non_blocking=True) for x in (lower - top, upper - top, share.float())
        )
        rows = torch.lerp(
            block.index_select(2, lower), block.index_select(2, upper), share[:, None]
        )
    return rows if source[1] == target[1] else _resize_columns(rows, target[1])


def _resize_columns(rows: Tensor, width: int) -> Tensor:
    """Bilinear resize (B, K, r, w) -> (B, K, r, width).

    With a ratio such as 2, 4 or 7/2, every second, fourth or seventh output column has the same
    weights, so each such phase is one `lerp`: on CPUs a third of the time of `F.interpolate`.
    """
    w = rows.shape[-1]
    groups = math.gcd(w, width)
    inputs, outputs = w // groups, width // groups
    if rows.device.type != "cpu" or outputs > MAX_PHASES or rows.requires_grad:
        return F.interpolate(rows, (rows.shape[-2], width), mode="bilinear", align_corners=False)
    padded = F.pad(rows, (1, 1, 0, 0), mode="replicate")
    wide = rows.new_empty(*rows.shape[:-1], width)
    for phase in range(outputs):
        centre = (phase + 0.5) * inputs / outputs + 0.5  # in padded columns
        first = math.floor(centre)
        left, right = (padded[..., at : at + w : inputs] for at in (first, first + 1))
        torch.lerp(
            left[..., :groups], right[..., :groups], centre - first, out=wide[..., phase::outputs]
        )
    return wide
