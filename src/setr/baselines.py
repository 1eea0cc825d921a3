"""The paper's convolutional baselines: dilated FCN and Semantic FPN (Table 2), on a ResNet-101.

They have the interface of the SETR decoders: a list of maps in, logits at the decoder's own
resolution out. The layers are those of mmsegmentation, whose parameter counts equal the paper's:
FCN (Long et al. 2015) with two 3x3 convolutions, whose output is concatenated with the input;
Semantic FPN of Kirillov et al. 2019 ("Panoptic Feature Pyramid Networks").

Shapes: B batch, h x w map, K classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.errors import UsageError
from setr.layers.conv_bn_relu import ConvBNReLU
from setr.layers.upsampling import upsample


class FCN(nn.Module):
    """3x3 conv-BN-ReLU layers on the last map, dropout, 1x1 classifier; resolution is unchanged.

    Args:
        in_channels: number of channels of the map.
        num_classes: number of classes K.
        channels: number of channels of the convolutions.
        num_convs: number of convolutions.
        concat_input: concatenate the map and the convolutions' output, and add a 3x3 convolution.
        dropout: channel dropout rate before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 512,
        num_convs: int = 2,
        concat_input: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                ConvBNReLU(in_channels if i == 0 else channels, channels, 3, bias=False)
                for i in range(num_convs)
            )
        )
        self.join = (
            ConvBNReLU(in_channels + channels, channels, 3, bias=False) if concat_input else None
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (B, C, h, w), of which the last is used -> logits (B, K, h, w)."""
        x = self.convs(features[-1])
        if self.join is not None:
            x = self.join(torch.cat([features[-1], x], dim=1))
        return self.classifier(self.dropout(x))


class FPNNeck(nn.Module):
    """Feature pyramid: lateral 1x1 convolutions, top-down sums (nearest), 3x3 convolutions."""

    def __init__(self, widths: list[int], *, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps from high to low resolution -> maps of the same sizes with `channels` channels."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class SemanticFPN(nn.Module):
    """3x3 conv-BN-ReLU and x2 upsampling of each level to stride 4, sum, 1x1 classifier.

    The logits have the resolution of the first level, a quarter of the image's.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_streams: int = 4,
        channels: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ConvBNReLU(in_channels if i == 0 else channels, channels, 3, bias=False)
                for i in range(max(1, level))
            )
            for level in range(num_streams)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C, h, w), (B, C, h/2, w/2), … -> logits (B, K, h, w)."""
        streams = []
        for level, (convs, x) in enumerate(zip(self.levels, features, strict=True)):
            for conv in convs.children():
                x = upsample(conv(x), 2 if level else 1)
            streams.append(x)
        return self.classifier(self.dropout(torch.stack(streams).sum(dim=0)))


def require_pyramid(strides: list[int]) -> None:
    """Raise `SetrError` unless each map for `SemanticFPN` has half the side of the one before.

    Args:
        strides: stride of each map in pixels.
    """
    if any(later != 2 * earlier for earlier, later in pairwise(strides)):
        raise UsageError(
            f"semantic_fpn: maps at strides {', '.join(map(str, strides))}; each must be twice the "
            "one before: give consecutive taps, and output_stride 32"
        )
