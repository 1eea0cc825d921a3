"""3x3 convolutions over the concatenation of maps of different sizes, computed map by map.

A convolution of concatenated maps is the sum of one convolution per map. The map of full size is
convolved as usual. The smaller ones, which would be resized to it first, are convolved before the
resize (`upsampled_convolution.py`). For the last convolution of UPerNet, over strides 4, 8, 16 and
32, this takes less than half of the multiplications, and the concatenation is never stored.

Shapes: B batch, C input channels, D output channels, h x w map.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.layers.conv_bn_relu import ConvBNReLU
from setr.layers.cpu_blocks import is_traced
from setr.layers.normalised import norm_relu
from setr.layers.products import exact_products
from setr.layers.upsampled_convolution import conv_of_doubled, conv_of_resized


class OpenConvBNReLU(ConvBNReLU):
    """Convolution, batch norm and ReLU, for callers that compute the convolution themselves."""

    def kernel(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the convolution, with the norm in it where `finish` leaves it out."""
        if self._needs_layers():
            return cast(Tensor, self[0].weight), cast("Tensor | None", self[0].bias)
        return self._folded()

    def kernel_behind(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution and this 1x1 one behind it, computed as one.

        The weight has the layout of `conv`, with D in place of its output channels.
        """
        own_bias = cast(Tensor, conv.bias)
        if isinstance(self[0], nn.Identity):  # merged
            return conv.weight, own_bias
        weight, shift = self.kernel()
        weight = weight.flatten(1)
        form = "do,iokl->idkl" if conv.transposed else "do,oikl->dikl"
        bias = weight @ own_bias
        product = torch.einsum(form, weight, conv.weight)
        return product, bias if shift is None else bias + shift

    def merge_into(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        """Make `conv` that one convolution, in a copy for export whose norm is folded."""
        weight, bias = self.kernel_behind(conv)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        self[0] = nn.Identity()

    def finish(self, y: Tensor) -> Tensor:
        """What follows the convolution: (B, D, h, w) -> the same; y is overwritten."""
        if not self._needs_layers():
            return F.relu_(y)
        if y.device.type == "cpu" and not is_traced():
            return norm_relu(y, self[1])
        return self[2](self[1](y))


class JoinedConv(OpenConvBNReLU):
    """A 3x3 conv-BN-ReLU over several maps, resized (bilinear) to the first and concatenated.

    Args:
        widths: number of channels of each map.
        channels: number of output channels D.
    """

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__(sum(widths), channels, 3, bias=False)
        self.widths = widths

    def joined(self, maps: list[Tensor], same: int = 1) -> Tensor:
        """Maps (B, C_i, h_i, w_i) -> (B, D, h, w), the size of the first.

        Args:
            maps: one map for each of `widths`.
            same: number of maps, from the first, that have the same size.
        """
        weight, bias = self.kernel()
        widths = self.widths[same:]
        first, *parts = weight.split([sum(self.widths[:same]), *widths], dim=1)
        y = F.conv2d(torch.cat(maps[:same], dim=1), first, bias, padding=1)
        size = (y.shape[-2], y.shape[-1])
        total = None
        for x, part in zip(maps[: same - 1 : -1], parts[::-1], strict=True):
            added = conv_after_resize(x, part, size)  # the smallest maps come in fp32
            total = added if total is None else total.add_(added)
        return self.finish(y if total is None else total.add_(y).to(y.dtype))


def conv_after_resize(x: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """`conv2d(resize(x, size), weight, padding=1)`, bilinear: (B, C, h, w) -> (B, D, *size).

    On CPUs, a transposed convolution is faster for a doubled map, and taps for larger factors
    (docs/performance.md).
    """
    on_cpu = x.device.type == "cpu" and not is_traced()
    if on_cpu and (2 * x.shape[-2], 2 * x.shape[-1]) == size:
        return conv_of_doubled(x, weight)
    return conv_of_resized(x, weight, size)


def average_grid(x: Tensor, side: int) -> Tensor:
    """As `F.adaptive_avg_pool2d(x, side)`: (B, C, h, w) -> (B, C, side, side).

    Two products with small matrices: deterministic on GPUs, and exported for any size.
    """
    cells = torch.arange(side, device=x.device)

    def matrix(n: int) -> Tensor:
        return _cells(cells * n // side, ((cells + 1) * n + side - 1) // side, n)

    return _averaged(x, matrix(x.shape[-2]), matrix(x.shape[-1]))


def halve(x: Tensor) -> Tensor:
    """Averages of 2x2 pixels, a bilinear resize by 0.5: (B, C, h, w) -> (B, C, h/2, w/2).

    Sides are rounded down, as in `F.interpolate`, but to one pixel at least.
    """

    def matrix(n: int) -> Tensor:
        first = 2 * torch.arange(n // 2 + 1 // n, device=x.device)  # max(n // 2, 1), traceable
        return _cells(first, first + 2, n)

    return _averaged(x, matrix(x.shape[-2]), matrix(x.shape[-1]))


def _cells(start: Tensor, end: Tensor, n: int) -> Tensor:
    """Matrix (rows, n) bool whose rows mark the places from `start` to below `end`."""
    place = torch.arange(n, device=start.device)
    return (place >= start[:, None]) & (place < end[:, None])


def _averaged(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Averages over cells of marked rows and columns, in fp32 or fp64; in the dtype of x."""
    wide = x if x.dtype == torch.float64 else x.float()
    across, down = (marks.to(wide.dtype) for marks in (columns, rows))
    across, down = (marks / marks.sum(dim=1, keepdim=True) for marks in (across, down))
    with exact_products(x.device):
        return (down @ wide @ across.T).to(x.dtype)
