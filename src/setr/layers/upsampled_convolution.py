"""Convolutions of bilinearly upsampled maps, computed on the maps before upsampling.

Upsampling and convolution are linear, so their order can be changed. Each form here computes the
same function as `conv(upsample(x))`, borders included, without the upsampled map:

- a 1x1 convolution is applied before upsampling; the bias may move along because bilinear weights
  sum to one;
- a 3x3 convolution is split into its nine taps, nine 1x1 convolutions before upsampling; resizing,
  shifting and summing them is a product with one small matrix along each axis: for classifiers,
  and for x4 and more;
- a 3x3 convolution after x2: bilinear x2 inserts zeros between the samples and applies the filter
  (1 3 3 1)/4. The filter commutes with the convolution, and a convolution of the zero-filled map
  is a transposed convolution of stride 2: a quarter of the multiplications. StyleGAN2's upsampling
  layers (Karras et al. 2020) work like this; here it replaces a layer trained in the usual form.

Shapes: B batch, C input channels, D output channels, h x w map, s upsampling factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.layers.products import exact_products
from setr.layers.upsampling import resizing_matrix, upsample

BAND_ROWS = 16
"""Rows of the upsampled map computed at a time on CPUs; with 256 channels they fit the caches."""


def classify_upsampled(
    x: Tensor, conv: nn.Conv2d, scale: int, *, align_corners: bool = False
) -> Tensor:
    """`conv(upsample(x, scale))` for a 1x1 or 3x3 convolution: (B, C, h, w) -> (B, D, s*h, s*w).

    Half-precision taps are resized and summed in fp32, in which the result stays unless the weights
    have half precision, too.
    """
    if conv.kernel_size == (1, 1):
        return upsample(conv(x), scale, align_corners=align_corners)
    size = (x.shape[-2] * scale, x.shape[-1] * scale)
    out = conv_of_resized(x, conv.weight, size, align_corners=align_corners)
    out = out if conv.bias is None else out + conv.bias[:, None, None]
    return out.to(conv.weight.dtype)


def conv_of_resized(
    x: Tensor, weight: Tensor, size: tuple[int, int], *, align_corners: bool = False
) -> Tensor:
    """`conv2d(resize(x, size), weight, padding=1)` by taps: (B, C, h, w) -> (B, D, *size).

    The resize is bilinear. Half-precision taps are resized and summed in fp32, which is returned.

    Args:
        weight: (D, C, 3, 3).
        size: height and width after the resize, not necessarily multiples of those before.
    """
    (B, _, h, w), D = x.shape, weight.shape[0]
    taps = weight.permute(0, 2, 3, 1).reshape(9 * D, -1, 1, 1)
    z = F.conv2d(x, taps).reshape(B, D, 3, 3, h, w).transpose(3, 4).reshape(B, D, 3 * h, 3 * w)
    z = z if z.dtype == torch.float64 else z.float()
    with exact_products(x.device):
        out = _shifted_matrices(h, size[0], z, align_corners) @ z
        return out @ _shifted_matrices(w, size[1], z, align_corners).T


def _shifted_matrices(n: int, size: int, like: Tensor, align_corners: bool) -> Tensor:
    """The resizing matrix shifted by one row, by none and by minus one, joined: (size, 3*n)."""
    matrix = resizing_matrix(n, size, like, align_corners)
    before, after = F.pad(matrix, (0, 0, 1, 0))[:-1], F.pad(matrix, (0, 0, 0, 1))[1:]
    return torch.cat([before, matrix, after], dim=1)


def conv_of_upsampled(x: Tensor, conv: nn.Conv2d, scale: int) -> Tensor:
    """`conv(upsample(x, scale))`: (B, C, h, w) -> (B, D, s*h, s*w)."""
    if conv.kernel_size == (1, 1):
        return upsample(conv(x), scale)
    if scale != 2 or conv.kernel_size != (3, 3):
        return conv(upsample(x, scale))
    return conv_of_doubled(x, conv.weight, conv.bias)


def conv_of_doubled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv2d(upsample(x, 2), weight, bias, padding=1)`, not in traced calls.

    (B, C, h, w), (D, C, 3, 3), (D,) -> (B, D, 2h, 2w).
    """
    padded = _ReplicationPad.apply(x)
    y = F.conv_transpose2d(padded, _transposed(weight), stride=2, padding=1)
    return _Filter.apply(y, bias, *_border_excess(x, weight))


def conv_of_doubled_in_bands(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    then: Callable[[Tensor], Tensor],
    layout: torch.memory_format,
) -> Tensor:
    """`then(conv2d(upsample(x, 2), weight, bias, padding=1))` in bands of rows, without gradients.

    The result is the only map of full size at double resolution, and each band fits the caches.

    Args:
        x: (B, C, h, w); channels last is faster.
        weight: (D, C, 3, 3).
        bias: (D,).
        then: pointwise function that follows: (B, D, rows, 2w) -> (B, any, rows, 2w).
        layout: memory format of the result.
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
    above, below, left, right = _border_excess(x, weight)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = x[..., max(top // 2 - 1, 0) : bottom // 2 + 1, :]
        part = F.pad(part, (1, 1, int(top == 0), int(bottom == height)), mode="replicate")
        y = F.conv_transpose2d(part, transposed, stride=2, padding=1)
        y = F.conv2d(y, _filter_weight(y), bias, groups=y.shape[1])
        if top == 0:
            y[..., :1, :] -= above
        if bottom == height:
            y[..., -1:, :] -= below
        y[..., :1] -= left[..., top:bottom, :]
        y[..., -1:] -= right[..., top:bottom, :]
        yield y


def conv_of_doubled_for_export(
    x: Tensor, weight: Tensor, bias: Tensor, then: Callable[[Tensor], Tensor]
) -> Tensor:
    """`then(conv2d(upsample(x, 2), weight, bias, padding=1))` for exported graphs, without bands.

    At the outermost pixels filter and convolution do not commute. They are computed from the
    upsampled border and concatenated last, after a classifier in `then` has reduced the channels.

    Args:
        x: (B, C, h, w).
        weight: (D, C, 3, 3).
        bias: (D,).
        then: pointwise function that follows: (B, D, any, any) -> (B, any, any, any).

    Returns:
        (B, any, 2h, 2w).
    """
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    y = F.conv_transpose2d(padded, _transposed(weight), stride=2, padding=1)
    inner = then(F.conv2d(y, _filter_weight(y), bias, groups=y.shape[1]))[..., 1:-1, 1:-1]
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
    """Weights of the transposed convolution that equals this convolution of a zero-filled map."""
    return weight.flip(2, 3).transpose(0, 1)


def _border_excess(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What applying the filter last adds at the borders, and must be subtracted.

    A convolution pads the upsampled map with zeros; with the filter last, the map continues there
    by one pixel. For the top, bottom, left and right border, each one pixel wide; the corners
    belong to top and bottom.
    """
    return (
        F.conv2d(_upsample_line(x[..., :1, :], (1, 2), (1, 1, 0, 0)), weight[..., :1, :]),
        F.conv2d(_upsample_line(x[..., -1:, :], (1, 2), (1, 1, 0, 0)), weight[..., 2:, :]),
        F.conv2d(_upsample_line(x[..., :1], (2, 1)), weight[..., :1], padding=(1, 0)),
        F.conv2d(_upsample_line(x[..., -1:], (2, 1)), weight[..., 2:], padding=(1, 0)),
    )


def _upsample_line(
    line: Tensor, factors: tuple[int, int], padding: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> Tensor:
    """A row or column upsampled by 2 along its length and padded by replication."""
    size = [factor * n for factor, n in zip(factors, line.shape[-2:], strict=True)]
    line = F.interpolate(line, size=size, mode="bilinear", align_corners=False)
    return F.pad(line, padding, mode="replicate")


class _ReplicationPad(torch.autograd.Function):
    """Replication padding by one pixel; PyTorch's own saves x, of which only the shape is used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="replicate")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inner = grad[..., 1:-1, 1:-1]
        return torch.ops.aten.replication_pad2d_backward(grad, inner, (1, 1, 1, 1))


class _Filter(torch.autograd.Function):
    """The (1 3 3 1)/4 filter along both axes, plus bias, minus `_border_excess`.

    (B, D, 2h+3, 2w+3) -> (B, D, 2h, 2w). Saves nothing for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        top: Tensor,
        bottom: Tensor,
        left: Tensor,
        right: Tensor,
    ) -> Tensor:
        ctx.has_bias = bias is not None
        y = F.conv2d(x, _filter_weight(x), bias, groups=x.shape[1])
        y[..., :1, :] -= top
        y[..., -1:, :] -= bottom
        y[..., :1] -= left
        y[..., -1:] -= right
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_x = F.conv2d(grad, _filter_weight(grad), padding=3, groups=grad.shape[1])
        grad_bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
        edges = (grad[..., :1, :], grad[..., -1:, :], grad[..., :1], grad[..., -1:])
        return grad_x, grad_bias, *(-edge for edge in edges)


def _filter_weight(like: Tensor) -> Tensor:
    """Depthwise weights (D, 1, 4, 4); symmetric, so forward and backward pass share them."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=like.dtype, device=like.device)
    return torch.outer(line, line).expand(like.shape[1], 1, 4, 4).contiguous()
