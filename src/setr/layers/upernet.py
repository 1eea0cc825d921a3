"""UPerNet on a plain ViT: multi-level neck, pooling pyramid and feature pyramid.

Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding" (arXiv 1807.10221), Figure 4,
with the layers of mmsegmentation 1.2.2 (mmseg/models/necks/multilevel_neck.py,
decode_heads/uper_head.py, decode_heads/psp_head.py).

A ViT's maps all have the size of the patch grid. The neck resamples them to 4, 2, 1 and 0.5 times
that size, as if they came from a convolutional backbone. The head pools the last map to grids of
1, 2, 3 and 6 cells (PSPNet), adds what it sees to the larger maps one by one, and joins them all.

Shapes: B batch, C encoder width, N neck width, D channels of the head, h x w patch grid, K classes.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from setr.errors import UsageError
from setr.layers.channel_norm import ChannelNorm
from setr.layers.conv_bn_relu import ConvBNReLU
from setr.layers.cpu_blocks import is_traced
from setr.layers.joined_convolution import (
    JoinedConv,
    OpenConvBNReLU,
    average_grid,
    conv_after_resize,
    halve,
)
from setr.layers.upsampling import resize_bilinear, upsample_features

SCALES = (4, 2, 1, 0.5)
"""Size of the neck's maps relative to the patch grid, shallow to deep."""
POOL_SIDES = (1, 2, 3, 6)
"""Sides of the grids to which the last map is pooled."""


class UPerNeck(nn.Module):
    """Multi-level neck, and the head's lateral convolutions on its maps.

    In mmsegmentation a map passes a 1x1 convolution, the resize, a 3x3 convolution, and in the head
    a 1x1 conv-BN-ReLU. Nothing non-linear is between the last two, so they are computed as one.

    Args:
        widths: number of channels C of each tapped map, shallow to deep.
        channels: number of channels D of the head.
        inner: number of channels N of the resampled maps; by default as many as the last map has.
        pyramid: resample the maps (`mln` in mmsegmentation's names); otherwise the head reads them
            as they are.
        norm_last: layer norm of the last map before that (`ln`), the encoder's own final norm.

    Raises:
        SetrError: a pyramid of other than four maps.
    """

    def __init__(
        self,
        widths: list[int],
        *,
        channels: int = 512,
        inner: int | None = None,
        pyramid: bool = True,
        norm_last: bool = True,
    ) -> None:
        super().__init__()
        if pyramid and len(widths) != len(SCALES):
            raise UsageError(
                f"upernet: {len(widths)} taps, but its neck makes {len(SCALES)} levels; give "
                f"{len(SCALES)} blocks as taps, or the neck none"
            )
        inner = (inner or widths[-1]) if pyramid else None
        self.channels, self.pyramid = channels, pyramid
        self.widths = [channels] * (len(widths) - 1) + [inner or widths[-1]]
        self.norm = ChannelNorm(widths[-1]) if norm_last else nn.Identity()
        scales = SCALES if pyramid else (1,) * len(widths)
        self.levels = nn.ModuleList(
            Level(width, inner, channels, int(scale))
            for width, scale in zip(widths[:-1], scales, strict=False)
        )
        self.last = _LastLevel(widths[-1], inner) if inner else nn.Identity()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """M maps (B, C, h, w) -> M - 1 maps (B, D, ...) and the last (B, N, h/2, w/2).

        The first have 4, 2 and 1 times the size of the grid. Without a pyramid all have the size of
        the grid, and the last has the encoder's C channels.
        """
        *earlier, last = features
        maps = [level(x) for level, x in zip(self.levels, earlier, strict=True)]
        return [*maps, self.last(self.norm(last))]


class Level(nn.Module):
    """A map resampled by a whole factor, and the head's lateral convolution of it.

    Args:
        width: number of channels C of the map.
        inner: number of channels N after resampling; None for the lateral convolution alone.
        channels: number of channels D of the head.
        scale: factor of the resize.
    """

    def __init__(self, width: int, inner: int | None, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.lateral = OpenConvBNReLU(inner or width, channels, 1, bias=False)
        self.project = nn.Conv2d(width, inner, 1) if inner else None
        self.conv = nn.Conv2d(inner, inner, 3, padding=1) if inner else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, scale*h, scale*w)."""
        if self.project is None or self.conv is None:
            return self.lateral(x)
        x = self.project(x)
        weight, bias = self.lateral.kernel_behind(self.conv)
        if self.scale == 1:
            return self.lateral.finish(F.conv2d(x, weight, bias, padding=1))
        size = (x.shape[-2] * self.scale, x.shape[-1] * self.scale)
        y = conv_after_resize(x, weight, size)
        y += bias[:, None, None]
        return self.lateral.finish(y.to(weight.dtype))

    def merge(self) -> None:
        """Multiply the two convolutions for good, in a copy for export whose norm is folded."""
        if self.conv is not None:
            self.lateral.merge_into(self.conv)


class _LastLevel(nn.Module):
    """The last map at half the size; the 1x1 convolution, which commutes with it, comes after."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, inner, 1)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, N, h/2, w/2)."""
        return self.conv(self.project(halve(x)))


class UPerHead(nn.Module):
    """Pooling pyramid on the last map, feature pyramid on all, 1x1 classifier.

    Args:
        in_channels: number of channels N of the last map.
        num_classes: number of classes K.
        num_streams: number of maps M.
        channels: number of channels D of the other maps and of all convolutions.
        pyramid: whether the maps differ in size, as those of a `UPerNeck` with a pyramid.
        dropout: channel dropout rate before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_streams: int = 4,
        channels: int = 512,
        pyramid: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.pools = nn.ModuleList(_Pool(in_channels, channels, side) for side in POOL_SIDES)
        self.context = JoinedConv([in_channels] + [channels] * len(POOL_SIDES), channels)
        self.smooth = nn.ModuleList(
            ConvBNReLU(channels, channels, 3, bias=False) for _ in range(num_streams - 1)
        )
        self.join = JoinedConv([channels] * num_streams, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The M maps of `UPerNeck` -> logits (B, K, 4h, 4w), or (B, K, h, w) without a pyramid."""
        *maps, last = features
        maps.append(self.context.joined([last, *(pool(last) for pool in self.pools)]))
        for i in reversed(range(len(maps) - 1)):
            above = maps[i + 1]
            maps[i] = maps[i] + (_resized(above, maps[i]) if self.pyramid else above)
        # `upsampled` by 1 keeps less for the backward pass than `forward`
        smooth = cast(list[ConvBNReLU], list(self.smooth))
        maps[:-1] = [conv.upsampled(x, 1) for conv, x in zip(smooth, maps[:-1], strict=True)]
        x = self.join.joined(maps, same=1 if self.pyramid else len(maps))
        return self.classifier(self.dropout(x))


class _Pool(nn.Module):
    """Averages of a grid of cells, and a 1x1 conv-BN-ReLU of them."""

    def __init__(self, in_channels: int, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = ConvBNReLU(in_channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels, side, side)."""
        pooled = average_grid(x, self.side)
        conv, norm, relu = self.conv
        if self.training and type(norm) is nn.BatchNorm2d and len(x) * self.side == 1:
            # a batch of one has one value per channel, and no variance: use the running statistics
            y = F.batch_norm(
                conv(pooled), norm.running_mean, norm.running_var, norm.weight, norm.bias,
                eps=norm.eps,
            )  # fmt: skip
            return relu(y)
        return self.conv(pooled)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize of a map to the size of another, of about twice its own."""
    size = (like.shape[-2], like.shape[-1])
    if not is_traced() and (2 * x.shape[-2], 2 * x.shape[-1]) == size:
        return upsample_features(x, 2)
    return resize_bilinear(x, size)
