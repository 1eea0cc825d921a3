"""Resized logits in blocks of rows: what every loss of this package is computed on.

Training with five heads and 150 classes at 512x512 would hold gigabytes of resized logits. Here
blocks of output rows are resized, turned into loss and gradient, and dropped; what stays is the
gradient at the decoder's own scale. Values and gradients equal `F.interpolate` (bilinear,
align_corners=False) followed by the plain loss.

Shapes: B batch, K classes, h x w logits, H x W target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = 4 << 20  # of resized logits at a time; fits the second-level caches

PixelLoss = Callable[[Tensor, Tensor, int], Tensor]
"""Logits (B, K, r, W), target (B, r, W) and the first of these r rows -> the sum over the block."""


def upsample_sum(
    logits: Tensor, target: Tensor, size: tuple[int, int], pixel_loss: PixelLoss
) -> Tensor:
    """Sum of a per-pixel loss over the resized logits."""
    total: Tensor = _UpsampleSum.apply(logits, target, size, pixel_loss)
    return total


class _UpsampleSum(torch.autograd.Function):
    """Computes the gradient block by block in the forward pass; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, size: tuple[int, int], pixel_loss: PixelLoss
    ) -> Tensor:
        x = exact(logits)
        grad = torch.zeros_like(x) if logits.requires_grad else None
        total = x.new_zeros(())
        with torch.enable_grad():
            for block in row_blocks(x, target, size, with_grad=grad is not None):
                rows = slice(block.top, block.top + block.wide.shape[2])
                part = pixel_loss(block.wide, target[:, rows].long(), block.top)
                total += part.detach()
                if grad is not None:
                    grad[:, :, block.source] += torch.autograd.grad(part, block.slab)[0]
        if grad is not None:
            ctx.save_for_backward(grad.to(logits.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype), None, None, None


class RowBlock(NamedTuple):
    """Output rows from `top` on, and the source rows they come from."""

    top: int
    source: slice
    slab: Tensor
    wide: Tensor


def row_blocks(
    x: Tensor, target: Tensor, size: tuple[int, int], *, with_grad: bool = False
) -> Iterator[RowBlock]:
    """Resized logits (B, K, r, W) in blocks of as many rows as fit `BLOCK_BYTES`."""
    B, K, h, _ = x.shape
    H, W = target.shape[-2:]
    rows = max(1, BLOCK_BYTES // (B * K * size[1] * x.element_size()))
    for top in range(0, H, rows):
        y = source_rows(top, min(top + rows, H), h, size[0], x)
        first, last = int(y[0].min()), int(y[1].max()) + 1
        slab = x[:, :, first:last].requires_grad_(with_grad)
        mixed = torch.lerp(
            slab[:, :, y[0].long() - first], slab[:, :, y[1].long() - first], y[2][:, None]
        )
        wide = F.interpolate(
            mixed, size=(mixed.shape[2], size[1]), mode="bilinear", align_corners=False
        )
        yield RowBlock(top, slice(first, last), slab, wide[..., :W])


def exact(logits: Tensor) -> Tensor:
    """Detached logits in fp32; fp64 stays."""
    x = logits.detach()
    return x if x.dtype == torch.float64 else x.float()


def source_rows(top: int, bottom: int, h: int, H: int, like: Tensor) -> tuple[Tensor, ...]:
    """Bilinear source rows of output rows top..bottom: lower index, upper index, upper share."""
    centre = (torch.arange(top, bottom, dtype=torch.float64) + 0.5) * (h / H) - 0.5
    centre = centre.clamp(0, h - 1)
    lower = centre.floor()
    upper = (lower + 1).clamp(max=h - 1)
    return lower.to(like.device), upper.to(like.device), (centre - lower).to(like)
