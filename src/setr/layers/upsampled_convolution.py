"""Convolutions of bilinearly upsampled maps, computed on the maps before upsampling.

Upsampling and convolution are linear, so their order is a choice. Each form here is the same
function as `conv(upsample(x))`, borders included, and never makes the upsampled map:

- a 1x1 convolution moves before the upsampling: its weights sum to one, the bias included;
- a 3x3 convolution to few channels, a classifier: its nine taps are nine 1x1 convolutions before
  the upsampling; resizing, shifting and adding them up is one small matrix along each axis;
- a 3x3 convolution after x2: bilinear x2 is zeros between the samples and then the filter
  (1 3 3 1)/4. That filter commutes with the convolution, and a convolution over zeros is a
  transposed convolution of stride 2: a quarter of the multiplications. StyleGAN2's upsampling
  layers (Karras et al. 2020) are built so; here it replaces a layer that was trained without.

Shapes: B batch, C channels in, D out, h x w map, s upsampling factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.layers.products import exact_products

BAND_ROWS = 16
"""Of an upsampled map at a time on CPUs; 256 channels of them fit the caches."""


def upsample(x: Tensor, scale: int, *, align_corners: bool = False) -> Tensor:
    """Bilinear upsampling by a whole factor: (B, C, h, w) -> (B, C, scale*h, scale*w)."""
    if scale == 1:
        return x
    size = (x.shape[-2] * scale, x.shape[-1] * scale)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def upsample_features(x: Tensor, scale: int) -> Tensor:
    """`upsample` of a map that a convolution reads: (B, C, h, w) -> (B, C, scale*h, scale*w).

    In half precision on CUDA, with gradients, it goes by matrices, whose weights are exact for
    these factors. `F.interpolate` takes three to five times as long there for maps from 64x64 on
    (docs/performance.md), and adds up the gradient in another order in every run.
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    if x.device.type == "cuda" and half and torch.is_grad_enabled() and scale in (2, 4, 8, 16):
        return upsample_by_matrices(x, scale)
    return upsample(x, scale)


def upsample_by_matrices(x: Tensor, scale: int) -> Tensor:
    """`upsample` as a matrix product along each axis; half precision is rounded after each."""
    (h, w), C = x.shape[-2:], x.shape[1]
    down, across = (_rows(n, scale, x, align_corners=False) for n in (h, w))
    tall = (down @ x.permute(0, 2, 3, 1).flatten(2)).unflatten(2, (w, C))
    return (across @ tall).permute(0, 3, 1, 2)


def classify_upsampled(
    x: Tensor, conv: nn.Conv2d, scale: int, *, align_corners: bool = False
) -> Tensor:
    """`conv(upsample(x, scale))` for a 1x1 or 3x3 convolution: (B, C, h, w) -> (B, D, s*h, s*w).

    Half-precision taps are resized and added in fp32.
    """
    if conv.kernel_size == (1, 1):
        return upsample(conv(x), scale, align_corners=align_corners)
    (B, _, h, w), D = x.shape, conv.out_channels
    taps = conv.weight.permute(0, 2, 3, 1).reshape(9 * D, -1, 1, 1)
    z = F.conv2d(x, taps).reshape(B, D, 3, 3, h, w).transpose(3, 4).reshape(B, D, 3 * h, 3 * w)
    z = z if z.dtype == torch.float64 else z.float()
    with exact_products(x.device):
        out = _shifted_rows(h, scale, z, align_corners) @ z
        out = out @ _shifted_rows(w, scale, z, align_corners).T
    return out if conv.bias is None else out + conv.bias[:, None, None]


def _shifted_rows(n: int, scale: int, like: Tensor, align_corners: bool) -> Tensor:
    """Upsampling as a matrix (s*n, n), one row up, as it is and one row down: (s*n, 3*n)."""
    here = _rows(n, scale, like, align_corners)
    up, down = F.pad(here, (0, 0, 1, 0))[:-1], F.pad(here, (0, 0, 0, 1))[1:]
    return torch.cat([up, here, down], dim=1)


def _rows(n: int, scale: int, like: Tensor, align_corners: bool) -> Tensor:
    """Upsampling as a matrix: (s*n, n)."""
    eye = torch.eye(n, dtype=like.dtype, device=like.device)
    rows = F.interpolate(eye[None], size=n * scale, mode="linear", align_corners=align_corners)
    return rows[0].T


def conv_of_upsampled(x: Tensor, conv: nn.Conv2d, scale: int) -> Tensor:
    """`conv(upsample(x, scale))`: (B, C, h, w) -> (B, D, s*h, s*w)."""
    if conv.kernel_size == (1, 1):
        return upsample(conv(x), scale)
    if scale != 2 or conv.kernel_size != (3, 3):
        out: Tensor = conv(upsample(x, scale))
        return out
    wide = _Continued.apply(x)
    spread = F.conv_transpose2d(wide, _transposed(conv.weight), stride=2, padding=1)
    filtered: Tensor = _Filtered.apply(spread, conv.bias, *_beyond(x, conv.weight))
    return filtered


def doubled_in_bands(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    then: Callable[[Tensor], Tensor],
    layout: torch.memory_format,
) -> Tensor:
    """`then(conv2d(upsample(x, 2), weight, bias, padding=1))` in bands of rows, without gradients.

    Neither the upsampled map nor the zeros between its samples exist as a whole, and a band that
    fits the caches is filtered there.

    Args:
        x: (B, C, h, w); channels last is the faster layout.
        weight: (D, C, 3, 3).
        bias: (D,).
        then: what follows, pixel by pixel: (B, D, rows, 2w) -> (B, any, rows, 2w).
        layout: of the result.
    """
    out, top = x.new_empty(0), 0
    for y in _bands(x, weight, bias, BAND_ROWS):
        band = then(y)
        if top == 0:
            size = (*band.shape[:2], 2 * x.shape[-2], band.shape[-1])
            out = torch.empty(size, dtype=band.dtype, device=x.device, memory_format=layout)
        out[..., top : top + band.shape[-2], :] = band
        top += band.shape[-2]
    return out


def _bands(x: Tensor, weight: Tensor, bias: Tensor, rows: int) -> Iterator[Tensor]:
    height = 2 * x.shape[-2]
    transposed = _transposed(weight)
    above, below, left, right = _beyond(x, weight)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = x[..., max(top // 2 - 1, 0) : bottom // 2 + 1, :]
        part = F.pad(part, (1, 1, int(top == 0), int(bottom == height)), mode="replicate")
        spread = F.conv_transpose2d(part, transposed, stride=2, padding=1)
        y = F.conv2d(spread, _filter(spread), bias, groups=spread.shape[1])
        if top == 0:
            y[..., :1, :] -= above
        if bottom == height:
            y[..., -1:, :] -= below
        y[..., :1] -= left[..., top:bottom, :]
        y[..., -1:] -= right[..., top:bottom, :]
        yield y


def doubled_in_graph(
    x: Tensor, weight: Tensor, bias: Tensor, then: Callable[[Tensor], Tensor]
) -> Tensor:
    """`then(conv2d(upsample(x, 2), weight, bias, padding=1))` for exported graphs, without bands.

    The outermost pixels, where filter and convolution do not commute, are computed from the
    upsampled edge and joined on last: there a classifier in `then` has made channels fewer.

    Args:
        x: (B, C, h, w).
        weight: (D, C, 3, 3).
        bias: (D,).
        then: what follows, pixel by pixel: (B, D, any, any) -> (B, any, any, any).

    Returns:
        (B, any, 2h, 2w).
    """
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    spread = F.conv_transpose2d(wide, _transposed(weight), stride=2, padding=1)
    inner = then(F.conv2d(spread, _filter(spread), bias, groups=spread.shape[1]))[..., 1:-1, 1:-1]
    first, last = slice(None, 2), slice(-2, None)
    strips = (
        (upsample(x[..., first, :], 2)[..., first, :], weight[..., 1:, :], (0, 1)),
        (upsample(x[..., last, :], 2)[..., last, :], weight[..., :2, :], (0, 1)),
        (upsample(x[..., first], 2)[..., first], weight[..., 1:], (1, 0)),
        (upsample(x[..., last], 2)[..., last], weight[..., :2], (1, 0)),
    )
    above, below, left, right = (then(F.conv2d(s, w, bias, padding=p)) for s, w, p in strips)
    rows = torch.cat([left[..., 1:-1, :], inner, right[..., 1:-1, :]], dim=-1)
    return torch.cat([above, rows, below], dim=-2)


def _transposed(weight: Tensor) -> Tensor:
    """The same convolution over a map with zeros between its samples, as a transposed one."""
    return weight.flip(2, 3).transpose(0, 1)


def _beyond(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the edges of a 3x3 convolution get from one pixel beyond the map upsampled by 2.

    The convolution pads with zeros there; the filter continues the map instead. Top, bottom, left
    and right, one pixel wide, corners in top and bottom.
    """
    return (
        F.conv2d(_doubled(x[..., :1, :], (1, 2), (1, 1, 0, 0)), weight[..., :1, :]),
        F.conv2d(_doubled(x[..., -1:, :], (1, 2), (1, 1, 0, 0)), weight[..., 2:, :]),
        F.conv2d(_doubled(x[..., :1], (2, 1)), weight[..., :1], padding=(1, 0)),
        F.conv2d(_doubled(x[..., -1:], (2, 1)), weight[..., 2:], padding=(1, 0)),
    )


def _doubled(
    strip: Tensor, factors: tuple[int, int], ends: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> Tensor:
    """A row or column upsampled by 2 along itself, and continued at its ends."""
    size = [factor * n for factor, n in zip(factors, strip.shape[-2:], strict=True)]
    line = F.interpolate(strip, size=size, mode="bilinear", align_corners=False)
    return F.pad(line, ends, mode="replicate")


class _Continued(torch.autograd.Function):
    """One pixel of replication on every side; PyTorch's layer keeps x for the sake of its shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="replicate")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inner = grad[..., 1:-1, 1:-1]
        return torch.ops.aten.replication_pad2d_backward(grad, inner, (1, 1, 1, 1))


class _Filtered(torch.autograd.Function):
    """The (1 3 3 1)/4 filter along both axes, plus bias, less what the edges have from beyond.

    (B, D, 2h+3, 2w+3) -> (B, D, 2h, 2w). Keeps nothing for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        spread: Tensor,
        bias: Tensor | None,
        top: Tensor,
        bottom: Tensor,
        left: Tensor,
        right: Tensor,
    ) -> Tensor:
        ctx.has_bias = bias is not None
        y = F.conv2d(spread, _filter(spread), bias, groups=spread.shape[1])
        y[..., :1, :] -= top
        y[..., -1:, :] -= bottom
        y[..., :1] -= left
        y[..., -1:] -= right
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        spread = F.conv2d(grad, _filter(grad), padding=3, groups=grad.shape[1])
        bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
        edges = (grad[..., :1, :], grad[..., -1:, :], grad[..., :1], grad[..., -1:])
        return spread, bias, *(-edge for edge in edges)


def _filter(like: Tensor) -> Tensor:
    """(D, 1, 4, 4); it is its own mirror image, so it serves both directions."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=like.dtype, device=like.device)
    return torch.outer(line, line).expand(like.shape[1], 1, 4, 4).contiguous()
