"""Patch embeddings of timm's ViTs: their precision, their form, and patches that overlap."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from setr.errors import UsageError
from setr.layers.products import no_autocast


class _FullPrecisionConv2d(nn.Conv2d):
    """A convolution in the dtype of its weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with no_autocast(x.device):
            # integers are not converted: they are unnormalised pixels, which should raise an error
            return super().forward(x.to(self.weight.dtype) if x.is_floating_point() else x)


def embed_in_full_precision(embed: Any) -> None:
    """Exclude the patch embedding of a timm ViT from autocast, except a hybrid's, a whole ResNet.

    It has a hundredth of the operations. In bf16, which rounds the image itself, it caused a
    quarter of the pixels whose class differed from fp32's (docs/decisions.md).
    """
    if not hasattr(embed, "backbone"):
        embed.proj.__class__ = _FullPrecisionConv2d


def overlap_patches(vit: Any, name: str, stride: int) -> None:
    """Place a timm ViT's patches `stride` pixels apart, each centred on its cell of that grid.

    Position embeddings keep their grid and are resampled at run time.

    Raises:
        SetrError: patches cannot be placed so.
    """
    embed = vit.patch_embed
    size = embed.proj.kernel_size[0]
    if hasattr(embed, "backbone"):
        raise UsageError(f"patch_stride {stride}: {name} has a ResNet in place of patches")
    if not isinstance(stride, int) or not 0 < stride <= size or (size - stride) % 2:
        raise UsageError(
            f"patch_stride {stride}: {name} has patches of {size} px; give "
            f"{', '.join(str(s) for s in range(size, 0, -2) if s >= size / 2)} or another "
            "stride smaller than the patch by an even number, so that patches stay centred"
        )
    embed.proj.stride = (stride, stride)
    embed.proj.padding = ((size - stride) // 2,) * 2
    embed.patch_size = (stride, stride)  # timm computes padding and the grid from it


def linear_patches(weight: Tensor, size: tuple[int, int], *, channels_last: bool = True) -> Tensor:
    """The convolution (C, channels, ph, pw) that a linear layer (C, n) on flat patches stands for.

    Args:
        weight: of the linear layer.
        size: of a patch, (ph, pw) in pixels.
        channels_last: whether the pixels' channels are neighbours in a flat patch.
    """
    if channels_last:
        return weight.unflatten(1, (*size, -1)).permute(0, 3, 1, 2)
    return weight.unflatten(1, (-1, *size))
