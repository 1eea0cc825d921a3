"""Upsample-and-cross-entropy without full-resolution logits.

Training with five heads and 150 classes at 512x512 would hold gigabytes of resized logits. Here
blocks of output rows are resized, turned into loss and gradient, and dropped; what stays is the
gradient at the decoder's own scale. Values and gradients equal `F.interpolate` (bilinear,
align_corners=False) followed by `F.cross_entropy`.

Shapes: B batch, K classes, h x w logits, H x W target.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.labels import IGNORE
from setr.model import Output

BLOCK_BYTES = 4 << 20  # of resized logits at a time; fits the second-level caches


def upsample_cross_entropy(
    logits: Tensor, target: Tensor, size: tuple[int, int], *, weight: Tensor | None = None
) -> Tensor:
    """Sum over counted pixels of the cross-entropy of bilinearly resized logits.

    Args:
        logits: (B, K, h, w), any float dtype; the loss is computed in fp32 (fp64 stays fp64).
        target: (B, H, W) training ids; `IGNORE` and everything outside the image is not counted.
        size: (H', W') the logits are resized to, at least (H, W); the rest is cropped away.
        weight: (K,) class weights.

    Returns:
        A scalar: the sum, not the mean; 0 (with zero gradient) if no pixel counts.
    """
    total: Tensor = _UpsampleCrossEntropy.apply(logits, target, size, weight)
    return total


class _UpsampleCrossEntropy(torch.autograd.Function):
    """Computes the gradient block by block in the forward pass; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, size: tuple[int, int], weight: Tensor | None
    ) -> Tensor:
        x = logits.detach()
        if x.dtype != torch.float64:
            x = x.float()
        B, K, h, _ = x.shape
        H, W = target.shape[-2:]
        grad = torch.zeros_like(x) if logits.requires_grad else None
        total = x.new_zeros(())
        if weight is not None:
            weight = weight.to(x.dtype)
        rows = max(1, BLOCK_BYTES // (B * K * size[1] * x.element_size()))
        with torch.enable_grad():
            for top in range(0, H, rows):
                y = _source_rows(top, min(top + rows, H), h, size[0], x)
                first, last = int(y[0].min()), int(y[1].max()) + 1
                slab = x[:, :, first:last].requires_grad_(grad is not None)
                mixed = torch.lerp(
                    slab[:, :, y[0].long() - first], slab[:, :, y[1].long() - first], y[2][:, None]
                )
                wide = F.interpolate(
                    mixed, size=(mixed.shape[2], size[1]), mode="bilinear", align_corners=False
                )
                part = F.cross_entropy(
                    wide[..., :W],
                    target[:, top : top + rows].long(),
                    weight=weight,
                    ignore_index=IGNORE,
                    reduction="sum",
                )
                total += part.detach()
                if grad is not None:
                    grad[:, :, first:last] += torch.autograd.grad(part, slab)[0]
        if grad is not None:
            ctx.save_for_backward(grad.to(logits.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype), None, None, None


def _source_rows(top: int, bottom: int, h: int, H: int, like: Tensor) -> tuple[Tensor, ...]:
    """Bilinear source rows of output rows top..bottom: lower index, upper index, upper share."""
    centre = (torch.arange(top, bottom, dtype=torch.float64) + 0.5) * (h / H) - 0.5
    centre = centre.clamp(0, h - 1)
    lower = centre.floor()
    upper = (lower + 1).clamp(max=h - 1)
    return lower.to(like.device), upper.to(like.device), (centre - lower).to(like)


def count_weight(target: Tensor, weight: Tensor | None = None) -> Tensor:
    """What a mean over valid pixels divides by: their number, or the sum of their class weights."""
    valid = target != IGNORE
    if weight is None:
        return valid.sum()
    return weight[target[valid].long()].sum()


def segmentation_loss(
    output: Output,
    target: Tensor,
    *,
    normalizer: Tensor,
    aux_weight: float = 0.4,
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Main and auxiliary cross-entropy of all heads (paper section 4.1, "Auxiliary loss").

    Args:
        output: un-resized logits of the heads.
        target: (B, H, W) training ids.
        normalizer: what the sums are divided by: `count_weight` over the whole step for a mean over
            valid pixels (accumulation and several processes then agree with one large batch), or
            the number of all pixels as in the authors' code.
        aux_weight: factor on each auxiliary loss.
        weight: (K,) class weights.

    Returns:
        `loss` (to differentiate), and detached `main` and `aux_1`, `aux_2`, …
    """
    sums = [
        upsample_cross_entropy(logits, target, output.size, weight=weight)
        for logits in (output.logits, *output.aux)
    ]
    means = [total / normalizer.clamp(min=1e-12) for total in sums]
    parts = {"main": means[0].detach()}
    parts.update({f"aux_{i}": m.detach() for i, m in enumerate(means[1:], 1)})
    loss = means[0]
    for mean in means[1:]:
        loss = loss + aux_weight * mean
    return {"loss": loss, **parts}
