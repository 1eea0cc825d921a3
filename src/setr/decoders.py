"""The three SETR decoders: Naive, PUP and MLA (paper section 3.3 and Figure 1), and their parts.

A decoder takes the encoder's list of feature maps and returns logits at its own resolution; the
only resize to the image size happens in `model.py` (or inside the loss). Bilinear weights sum to
one and a 1x1 convolution is linear per pixel, so classifying before upsampling equals upsampling
before classifying, with K instead of 256 channels to resize. All heads here classify first.

Shapes: B batch, C encoder width, h x w patch grid, K classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from setr.errors import UsageError
from setr.layers.channel_norm import ChannelNorm
from setr.layers.conv_bn_relu import ConvBNReLU
from setr.layers.recompute import recompute_cheap
from setr.layers.upsampled_convolution import classify_upsampled
from setr.layers.upsampling import require_final_scale, upsample


class UpsampleHead(nn.Module):
    """Convolutions and upsampling on the last feature map: Naive, PUP and their auxiliary heads.

    Args:
        in_channels: number of channels C of the map.
        num_classes: number of classes K.
        num_convs: number of conv-BN-ReLU layers before the classifier.
        kernel_size: kernel size of these layers.
        scale: bilinear upsampling factor between two of them.
        final_scale: upsampling factor of the logits after the classifier. It matters only where
            another resize follows: resizing by 4 twice differs from resizing by 16 once.
        channels: number of channels of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_convs: int = 1,
        kernel_size: int = 1,
        scale: int = 1,
        final_scale: int = 1,
        channels: int = 256,
    ) -> None:
        super().__init__()
        if num_convs < 1:
            raise UsageError(f"num_convs {num_convs}: give at least 1")
        require_final_scale(final_scale)
        self.norm = ChannelNorm(in_channels)
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(
            ConvBNReLU(a, b, kernel_size, bias=True) for a, b in pairwise(widths)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.scale = scale
        self.final_scale = final_scale
        recompute_cheap(self)

    def leave_last_to_resize(self, patch_size: int) -> None:
        """Drop a final upsampling to image size, since the model's own resize does the same."""
        if self.scale ** (len(self.convs) - 1) * self.final_scale == patch_size:
            self.final_scale = 1

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (B, C, h, w), of which the last is used -> logits (B, K, s*h, s*w).

        s = scale^(num_convs - 1) * final_scale.
        """
        first, *later = cast(list[ConvBNReLU], list(self.convs))
        x = first(self.norm(features[-1]))
        for conv in later[:-1]:
            x = conv.upsampled(x, self.scale)
        if later:
            logits = later[-1].upsampled(x, self.scale, classifier=self.classifier)
        else:
            logits = self.classifier(x)
        return upsample(logits.contiguous(), self.final_scale)


class Naive(UpsampleHead):
    """Naive upsampling: 1x1 conv, BN, ReLU, 1x1 classifier, one bilinear resize (section 3.3 (1)).

    The logits have the resolution of the patch grid.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, channels: int = 256, final_scale: int = 1
    ) -> None:
        super().__init__(in_channels, num_classes, channels=channels, final_scale=final_scale)


class PUP(UpsampleHead):
    """Progressive upsampling: four 3x3 convolutions, each followed by x2 (section 3.3 (2)).

    The logits have 8 times the resolution of the patch grid. The last x2 of Figure 1(b) commutes
    with the classifier and is part of the model's resize to the image. `final_scale=2` makes it
    explicit, as in mmsegmentation; it is still left to the resize except under
    `odd_sizes="squeeze"`, where the results differ.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 256,
        num_convs: int = 4,
        final_scale: int = 1,
    ) -> None:
        super().__init__(
            in_channels,
            num_classes,
            num_convs=num_convs,
            kernel_size=3,
            scale=2,
            final_scale=final_scale,
            channels=channels,
        )


class MLANeck(nn.Module):
    """Top-down aggregation of M maps of equal size, the first half of MLA (section 3.3 (3)).

    Each stream has a LayerNorm and a 1x1 conv-BN-ReLU to `channels`; streams are summed from the
    deepest to the shallowest; a 3x3 conv-BN-ReLU follows each sum. The paper's text halves the
    channels at the first layer. The default of 256 is that of the authors' code and released
    weights, and agrees with the paper's parameter counts.
    """

    def __init__(self, widths: list[int], *, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        self.reduce = nn.ModuleList(ConvBNReLU(width, channels, 1, bias=False) for width in widths)
        self.refine = nn.ModuleList(ConvBNReLU(channels, channels, 3, bias=False) for _ in widths)
        recompute_cheap(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """M maps (B, C, h, w), shallow to deep -> M maps (B, channels, h, w) in the same order."""
        streams = [
            reduce(norm(x))
            for norm, reduce, x in zip(self.norms, self.reduce, features, strict=True)
        ]
        for i in reversed(range(len(streams) - 1)):
            streams[i] = streams[i] + streams[i + 1]
        return [refine(x) for refine, x in zip(self.refine, streams, strict=True)]


class MLA(nn.Module):
    """Multi-level feature aggregation over the maps of `MLANeck` (section 3.3 (3), Figure 1(c)).

    Two 3x3 conv-BN-ReLU to `stream_channels` for each stream, x4 upsampling, concatenation and a
    classifier. The logits have 4 times the resolution of the patch grid.

    Args:
        in_channels: number of channels of the neck's maps.
        num_classes: number of classes K.
        num_streams: number of maps M.
        stream_channels: number of channels of each stream's convolutions; 128 in the paper.
        classifier_kernel: kernel size of the classifier: 3 in the authors' code and the parameter
            counts of Table 2, 1 in mmsegmentation.
        align_corners: option of the x4 upsampling: True in the authors' code, False in
            mmsegmentation.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_streams: int = 4,
        stream_channels: int = 128,
        classifier_kernel: int = 3,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if classifier_kernel not in (1, 3):
            raise UsageError(f"classifier_kernel {classifier_kernel}: give 3 or 1")
        self.streams = nn.ModuleList(
            nn.Sequential(
                ConvBNReLU(in_channels, stream_channels, 3, bias=False),
                ConvBNReLU(stream_channels, stream_channels, 3, bias=False),
            )
            for _ in range(num_streams)
        )
        self.classifier = nn.Conv2d(
            num_streams * stream_channels,
            num_classes,
            classifier_kernel,
            padding=classifier_kernel // 2,
        )
        self.align_corners = align_corners

    def forward(self, features: list[Tensor]) -> Tensor:
        """M maps (B, C, h, w) -> logits (B, K, 4h, 4w)."""
        x = torch.cat([stream(f) for stream, f in zip(self.streams, features, strict=True)], dim=1)
        return classify_upsampled(x, self.classifier, 4, align_corners=self.align_corners)


class PointwiseHead(nn.Module):
    """MLA's auxiliary head, a 1x1 convolution; the authors' code has no bias."""

    def __init__(self, in_channels: int, num_classes: int, *, bias: bool = False) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(in_channels, num_classes, 1, bias=bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (B, C, h, w), of which the last is used -> logits (B, K, h, w)."""
        return self.classifier(features[-1])
