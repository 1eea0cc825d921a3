"""The paper's convolutional baselines: dilated FCN and Semantic FPN (Table 2), on a ResNet-101.

Same contract as the SETR decoders: a list of maps in, logits at the decoder's own scale out.
Layouts follow mmsegmentation, whose parameter counts equal the paper's: FCN after Long et al. 2015
with two 3x3 convolutions and the input concatenated once more; Semantic FPN after Kirillov et al.
2019 ("Panoptic Feature Pyramid Networks").

Shapes: B batch, h x w map, K classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.decoders import ConvBNReLU
from setr.errors import USAGE, SetrError
from setr.layers.upsampled_convolution import upsample


class FCN(nn.Module):
    """3x3 conv-BN-ReLU layers on the last map, dropout, 1x1 classifier; logits at the map's scale.

    Args:
        in_channels: width of the map.
        num_classes: K.
        channels: width of the convolutions.
        num_convs: number of convolutions.
        concat_input: join the map and the convolutions' output by one more 3x3 convolution.
        dropout: share of channels dropped before the classifier in training.
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
        """List of (B, C, h, w), the last is used -> logits (B, K, h, w)."""
        x = self.convs(features[-1])
        if self.join is not None:
            x = self.join(torch.cat([features[-1], x], dim=1))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class FPNNeck(nn.Module):
    """Feature pyramid: 1x1 laterals, top-down sums (nearest), a 3x3 convolution per level."""

    def __init__(self, widths: list[int], *, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps of falling resolution -> as many maps of `channels`, same resolutions."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class SemanticFPN(nn.Module):
    """Per level 3x3 conv-BN-ReLU with x2 upsampling until stride 4, sum, 1x1 classifier.

    Logits come at the first level's scale, a quarter of the image.
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
        logits: Tensor = self.classifier(self.dropout(torch.stack(streams).sum(dim=0)))
        return logits


def require_pyramid(strides: list[int]) -> None:
    """Refuse maps for `SemanticFPN` whose sides do not halve from each to the next.

    Args:
        strides: pixels per cell of each map.
    """
    if any(later != 2 * earlier for earlier, later in pairwise(strides)):
        raise SetrError(
            f"semantic_fpn: maps at strides {', '.join(map(str, strides))}; each must be twice the "
            "one before: give neighbouring taps, and output_stride 32",
            code=USAGE,
        )
