"""Bilinear resizing of feature maps and logits, as one function or as matrix products.

Resizing is linear along each axis, so it is a product with a narrow matrix on either side of a map.

Shapes: B batch, C channels, h x w map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.errors import UsageError
from setr.layers.cpu_blocks import is_traced
from setr.layers.products import exact_products

MAX_FINAL_SCALE = 32
"""Largest upsampling factor of a head: the largest patch size in pixels."""


def require_final_scale(factor: int) -> None:
    """Raise `SetrError` unless logits can be upsampled by this factor."""
    if not isinstance(factor, int) or not 1 <= factor <= MAX_FINAL_SCALE:
        raise UsageError(f"final_scale {factor!r}: give a whole number from 1 to {MAX_FINAL_SCALE}")


def resize_bilinear(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """`F.interpolate`: (B, C, h, w) -> (B, C, *size); on GPUs its gradient is deterministic."""
    if x.device.type == "cuda" and torch.is_grad_enabled() and not is_traced():
        return _Resize.apply(x, size, align_corners)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


class _Resize(torch.autograd.Function):
    """A bilinear resize whose gradient is two products; on CUDA torch's own adds atomically."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.source, ctx.align_corners = x.shape[-2:], align_corners
        return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wide = grad if grad.dtype is torch.float64 else grad.float()
        down, across = (
            resizing_matrix(n, size, wide, ctx.align_corners)
            for n, size in zip(ctx.source, grad.shape[-2:], strict=True)
        )
        with exact_products(grad.device):
            return (down.T @ wide @ across).to(grad.dtype), None, None


def upsample(x: Tensor, scale: int, *, align_corners: bool = False) -> Tensor:
    """Bilinear upsampling by an integer factor: (B, C, h, w) -> (B, C, scale*h, scale*w)."""
    if scale == 1:
        return x
    size = (x.shape[-2] * scale, x.shape[-1] * scale)
    return resize_bilinear(x, size, align_corners=align_corners)


def upsample_features(x: Tensor, scale: int) -> Tensor:
    """`upsample` before a convolution: (B, C, h, w) -> (B, C, scale*h, scale*w).

    In half precision on CUDA, with gradients, factors 2, 4, 8 and 16 use matrix products, whose
    weights are then exact. `F.interpolate` takes three to five times as long there for maps of
    64x64 and larger (docs/performance.md).
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    if x.device.type == "cuda" and half and torch.is_grad_enabled() and scale in (2, 4, 8, 16):
        return upsample_by_matrices(x, scale)
    return upsample(x, scale)


def upsample_by_matrices(x: Tensor, scale: int) -> Tensor:
    """`upsample` as a matrix product along each axis; half precision rounds after each."""
    (h, w), C = x.shape[-2:], x.shape[1]
    along_h, along_w = (resizing_matrix(n, n * scale, x, align_corners=False) for n in (h, w))
    tall = (along_h @ x.permute(0, 2, 3, 1).flatten(2)).unflatten(2, (w, C))
    return (along_w @ tall).permute(0, 3, 1, 2)


def resizing_matrix(n: int, size: int, like: Tensor, align_corners: bool) -> Tensor:
    """Linear resizing of n samples as a matrix (size, n)."""
    eye = torch.eye(n, dtype=like.dtype, device=like.device)
    rows = F.interpolate(eye[None], size=size, mode="linear", align_corners=align_corners)
    return rows[0].T
