"""The linear probe, which measures how well patch features separate the classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from setr.layers.channel_norm import ChannelNorm


class Linear(nn.Module):
    """A linear classifier on the patch features of one block, or of several concatenated.

    Follows Oquab et al. 2023 (DINOv2), section 7.4: the features of the last block, or of the last
    four for "+ms" (`taps`), pass the encoder's norm, a batch norm and a 1x1 convolution.

    Args:
        in_channels: number of channels C of each feature map.
        num_classes: number of classes K.
        num_streams: number of feature maps.
    """

    def __init__(self, in_channels: int, num_classes: int, *, num_streams: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(in_channels) for _ in range(num_streams))
        self.batch_norm = nn.BatchNorm2d(in_channels * num_streams)
        self.classifier = nn.Conv2d(in_channels * num_streams, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (B, C, h, w), one per stream -> logits (B, K, h, w)."""
        joined = [norm(x) for norm, x in zip(self.norms, features, strict=True)]
        return self.classifier(self.batch_norm(torch.cat(joined, dim=1)))
