"""Checkpoints of NaFlex ViTs: timm's names, and NVIDIA's of RADIO (C-RADIOv3 and v4).

Both embed patches by a linear layer on flat patches, which becomes a convolution here.
"""

from __future__ import annotations

import math

from torch import Tensor

from setr.layers.patch_embedding import linear_patches
from setr.weight_files.naming import Rule, Tensors, Translation, rename

_RADIO = r"radio_model\.model\."
_PROJ = "patch_embed.proj"


def plain_names(tensors: Tensors) -> Tensors:
    """The names of timm's other ViTs for a checkpoint of timm's NaFlex ViT; others as they are."""
    if not any(name.startswith("embeds.") for name in tensors):
        return tensors
    rules: list[Rule] = [
        (r"embeds\.(proj\.\w+|norm\..+)", r"patch_embed.\1"),
        (r"embeds\.(.+)", r"\1"),
        (r"(.+)", r"\1"),
    ]
    named, _ = rename(tensors, rules)
    if (weight := named.get(f"{_PROJ}.weight")) is not None:
        named[f"{_PROJ}.weight"] = convolution(weight)
    if (table := named.get("pos_embed")) is not None and table.ndim == 4:
        named["pos_embed"] = table.flatten(1, 2)
    return named


def radio(tensors: Tensors) -> Translation:
    """RADIO's encoder; its teachers' heads and the normalisation of its images are left out.

    It has a summary token for each teacher and registers. As in timm, the first is the class token
    and the rest are registers.
    """
    rules: list[Rule] = [
        (_RADIO + r"patch_generator\.embedder\.weight", f"{_PROJ}.weight"),
        (_RADIO + r"patch_generator\.pos_embed", "pos_embed"),
        (_RADIO + r"patch_generator\.cls_token\.token", "cls_token"),
        (_RADIO + r"(blocks\.\d+\.ls[12]\.)grandma", r"\1gamma"),
        (_RADIO + r"(blocks\..+)", r"\1"),
    ]
    named, unexpected = rename(tensors, rules)
    weight, tokens = named[f"{_PROJ}.weight"], named["cls_token"]
    named |= {
        f"{_PROJ}.weight": convolution(weight, channels_last=False),
        f"{_PROJ}.bias": weight.new_zeros(len(weight)),
        "cls_token": tokens[None, :1].clone(),
        "reg_token": tokens[None, 1:].clone(),
    }
    filled = [f"encoder.vit.{_PROJ}.bias"]
    return Translation("radio", named, unexpected, filled=filled)


def convolution(weight: Tensor, *, channels_last: bool = True) -> Tensor:
    """The convolution for a linear layer on flat patches, of RGB images or 16 pixels a side.

    One that is a convolution already stays as it is; arguments as of `linear_patches`.
    """
    if weight.ndim != 2:
        return weight
    length = weight.shape[1]
    side = math.isqrt(length // 3)
    side = side if 3 * side * side == length else 16
    return linear_patches(weight, (side, side), channels_last=channels_last).contiguous()
