"""The linear probe: what patch features tell by themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from setr.decoders import ChannelNorm


class Linear(nn.Module):
    """One linear layer on the patch features of one block, or of several joined.

    After Oquab et al. 2023 (DINOv2), section 7.4: features of the last block, or "+ms" of the last
    four (`taps`), through the encoder's norm and a batch norm into a 1x1 convolution.

    Args:
        in_channels: width C of each map.
        num_classes: K.
        num_streams: number of maps.
    """

    def __init__(self, in_channels: int, num_classes: int, *, num_streams: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(in_channels) for _ in range(num_streams))
        self.batch_norm = nn.BatchNorm2d(in_channels * num_streams)
        self.classifier = nn.Conv2d(in_channels * num_streams, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (B, C, h, w), one per stream -> logits (B, K, h, w)."""
        joined = [norm(x) for norm, x in zip(self.norms, features, strict=True)]
        logits: Tensor = self.classifier(self.batch_norm(torch.cat(joined, dim=1)))
        return logits
