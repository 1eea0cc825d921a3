"""What a model returns for training, and the features that it takes instead of images.

Shapes: B batch, C channels, K classes, h x w map.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from setr.layers.mask_classifier import MaskOutput


class Output(NamedTuple):
    """Logits of all heads, before the resize to the image's size.

    Attributes:
        logits: (B, K, h, w) from the decoder, at its own resolution.
        aux: logits of each auxiliary head, in the order of `aux_taps`.
        size: (H', W') to resize to: the image's size rounded up to multiples of the patch size.
        aux_scale: factor by which the loss upsamples the auxiliary logits bilinearly before that
            resize; upsampling by 4 twice differs from once by 16.
        image_size: (H, W) of the images, which the loss's target must have; None if not known.
    """

    logits: Tensor
    aux: list[Tensor]
    size: tuple[int, int]
    aux_scale: int = 1
    image_size: tuple[int, int] | None = None


def predictions(output: Output | MaskOutput) -> list[Tensor]:
    """All tensors that the loss reads, the decoder's first."""
    if isinstance(output, MaskOutput):
        return [tensor for stage in reversed(output.stages) for tensor in stage]
    return [output.logits, *output.aux]


class Features(NamedTuple):
    """Precomputed feature maps of an encoder, which a model takes instead of images.

    Attributes:
        maps: one (B, C, h, w) map per tapped block.
        size: (H, W) of the images in pixels.
    """

    maps: list[Tensor]
    size: tuple[int, int]
