"""EoMT's heads: every query predicts a class and a mask (arXiv 2503.19108, section 3.1).

Shapes: B batch, C embedding width, h x w patch grid, Q queries, K classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from setr.layers.channel_norm import ChannelNorm
from setr.layers.products import no_autocast
from setr.layers.upsampling import resize_bilinear

TINY = 1e-12
"""Smallest score of a class, so that its logarithm is finite."""


class Masks(NamedTuple):
    """What the queries predict from one state of the tokens.

    Attributes:
        masks: (B, Q, h', w') logits of each query's mask.
        classes: (B, Q, K + 1) logits of each query's class; the last one is "no object".
    """

    masks: Tensor
    classes: Tensor


class MaskOutput(NamedTuple):
    """Predictions of a mask classifier in training.

    Attributes:
        stages: before each of the encoder's query blocks, and after the last one.
        size: (H', W') in pixels that the masks cover.
        image_size: (H, W) of the images, which the loss's target must have; None if not known.
    """

    stages: list[Masks]
    size: tuple[int, int]
    image_size: tuple[int, int] | None = None


class MaskClassifier(nn.Module):
    """Queries, and the heads that turn them and the patches into masks and classes.

    Args:
        in_channels: embedding width C of the encoder.
        num_classes: number of classes K.
        patch_size: pixels per token along each side; masks have a quarter of the image's resolution
            with patches of 16 pixels.
        num_queries: number of queries Q; 100 in the paper for semantic segmentation.
        doublings: how many times the resolution of the patches is doubled for the masks; by default
            up to about a quarter of the image's.
        norm_eps: epsilon of the norms after each doubling.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        patch_size: int,
        num_queries: int = 100,
        doublings: int | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, in_channels))
        self.class_head = nn.Linear(in_channels, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
        )
        doublings = doublings or usual_doublings(patch_size)
        self.upscale = nn.Sequential(*(_Doubling(in_channels, norm_eps) for _ in range(doublings)))
        self.patch_size = patch_size

    def predict(self, patches: Tensor, queries: Tensor) -> Masks:
        """Normalised patches (B, C, h, w) and queries (B, C, 1, Q) -> masks and classes."""
        tokens = queries[:, :, 0].transpose(1, 2)
        pixels = self.upscale(patches)
        masks = (self.mask_head(tokens) @ pixels.flatten(2)).unflatten(2, pixels.shape[-2:])
        return Masks(masks, self.class_head(tokens))

    def forward(self, features: list[Tensor]) -> Tensor:
        """[patches (B, C, h, w), queries (B, C, 1, Q)] -> logits (B, K, H', W') in pixels.

        A class scores the sum over queries of its probability times that of the pixel being in the
        query's mask; the logits are the scores' logarithms. The masks are resized to pixels first,
        as in the authors' code. All of it is computed in fp32 (fp64 stays fp64).
        """
        masks, classes = self.predict(*features)
        h, w = features[0].shape[-2:]
        size = h * self.patch_size, w * self.patch_size
        with no_autocast(masks.device):  # in bf16, many pixels' best two scores would be equal
            dtype = masks.dtype if masks.dtype is torch.float64 else torch.float32
            inside = _probabilities(resize_bilinear(masks.to(dtype), size))
            shares = classes.to(dtype).softmax(-1)[..., :-1]
            scores = (shares.transpose(1, 2) @ inside.flatten(2)).unflatten(2, inside.shape[-2:])
            return scores.clamp_(min=TINY).log_().to(self.class_head.weight.dtype)


def _probabilities(masks: Tensor) -> Tensor:
    """The sigmoid, in place of its argument, or in a graph for any runtime.

    The Sigmoid of ONNX Runtime 1.32 has an absolute accuracy of 1e-7 on CPUs, and is 0 below -18,
    which the logarithm of the scores shows; its Exp is accurate.
    """
    if torch.compiler.is_exporting():
        return (1 + (-masks).exp()).reciprocal()
    return masks.sigmoid_()


def usual_doublings(patch_size: int) -> int:
    """How many times the authors double the resolution of patches of a size in pixels."""
    return max(1, int(math.log2(patch_size)) - 2)


class _Doubling(nn.Module):
    """Twice the resolution: transposed convolution, GELU, depthwise convolution, norm."""

    def __init__(self, channels: int, norm_eps: float) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.activation = nn.GELU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = ChannelNorm(channels, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.norm(self.conv2(self.activation(self.conv1(x))))
