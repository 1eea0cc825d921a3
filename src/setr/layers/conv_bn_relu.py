"""Convolution, batch norm and ReLU: the layer of which all decoders consist, and its fast forms.

The values are always those of the three layers. Which form runs depends on the mode: the layers
themselves, the norm folded into the convolution, or a preceding upsampling moved behind it.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.layers.cpu_blocks import is_traced
from setr.layers.normalised import norm_relu
from setr.layers.upsampled_convolution import (
    conv_of_doubled_for_export,
    conv_of_doubled_in_bands,
    conv_of_upsampled,
)
from setr.layers.upsampling import upsample_features

SMALL = 150_000_000
"""Convolutions with fewer multiplications are faster without bands."""


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm and ReLU at constant resolution.

    In eval mode without gradients, the norm is folded into the convolution, which saves a pass over
    the map and a copy of it. `upsampled` computes a preceding upsampling after the convolution
    where that is faster (`upsampled_convolution.py`).
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, *, bias: bool) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=bias),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.margin = kernel_size // 2
        self.in_graph = False  # True in a copy for export, whose norm is folded already

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels, h, w)."""
        if self._needs_layers():
            return super().forward(x)
        return self[2](F.conv2d(x, *self._folded(), padding=self.margin))

    def upsampled(self, x: Tensor, scale: int, classifier: nn.Conv2d | None = None) -> Tensor:
        """`classifier(forward(upsample(x, scale)))`: (B, C, h, w) -> (B, …, scale*h, scale*w).

        On CPUs the convolution runs before the upsampling where possible, which is cheaper. Without
        gradients it runs in bands of rows, so that the upsampled map, the largest of the network,
        is never allocated.

        Args:
            scale: integer upsampling factor.
            classifier: 1x1 convolution; None for none.
        """
        then = classifier or nn.Identity()
        doubled = scale == 2 and self.margin == 1
        on_cpu = x.device.type == "cpu" and not is_traced()
        if self.in_graph and doubled:
            weight, bias = (cast(Tensor, p) for p in (self[0].weight, self[0].bias))
            return conv_of_doubled_for_export(x, weight, bias, lambda y: then(F.relu(y)))
        if on_cpu and self._needs_layers():
            y = conv_of_upsampled(x, cast(nn.Conv2d, self[0]), scale)
            return norm_relu(y, self[1], classifier)
        if on_cpu and doubled:
            x = x.contiguous(memory_format=torch.channels_last)
            if self._use_bands(x):
                # channels last for the next convolution, the default layout for logits
                layout = torch.contiguous_format if classifier else torch.channels_last
                return conv_of_doubled_in_bands(
                    x, *self._folded(), lambda y: then(F.relu_(y)), layout
                )
        return then(self(upsample_features(x, scale)))

    def _use_bands(self, x: Tensor) -> bool:
        """Whether the map is large enough; independent of B, so that batching changes no bit."""
        return cast(Tensor, self[0].weight).numel() * 4 * x.shape[-2] * x.shape[-1] > SMALL

    def _needs_layers(self) -> bool:
        return self.training or torch.is_grad_enabled()

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution with the batch norm folded in."""
        conv, norm = cast(nn.Conv2d, self[0]), cast(nn.BatchNorm2d, self[1])
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = conv.weight * scale[:, None, None, None]
        shift = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        return weight, norm.bias - shift * scale
