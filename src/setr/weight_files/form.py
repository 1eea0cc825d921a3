"""What the tensors of a checkpoint show about its encoder, compared with a model's.

Many models keep the name of a timm ViT but have another form: pathology's UNI is a
`vit_large_patch16_224` with layer scale, H-optimus and Virchow are DINOv2's ViT with other sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from setr.layers.positions import PREFIX_TOKENS
from setr.weight_files.naming import Tensors, num_blocks
from setr.weight_files.stem import is_square

_VIT = "encoder.vit."
_ACTIVE = r"encoder\.vit\.(norm_pre\.|reg_token$|patch_embed\.|blocks\.\d+\.)"
"""Names of tensors that may change what the blocks compute."""
_KEPT_OUT = r"\.attn\.(q_bias|v_bias|qkv\.bias)$|\.patch_embed\.(proj\.weight$|backbone\.)"
"""Tensors that may be left out: biases of DINOv3 by its encoders' names; an image's patches and a
ResNet's classifier by a Hybrid."""


def unplaced(given: Tensors, own: Tensors, matters: Callable[[str], bool]) -> list[str]:
    """Names of a checkpoint's tensors without which the model computes something else.

    Those of blocks that the model does not have, and zeros, change nothing.

    Args:
        given: the checkpoint's tensors, under the model's names.
        own: the model's.
        matters: whether a tensor of this name takes part in what is computed.
    """
    depth, found = num_blocks(own), []
    for name, value in given.items():
        block = re.match(r"encoder\.vit\.blocks\.(\d+)\.", name)
        is_behind = block is not None and int(block[1]) >= depth
        if name in own or is_behind or not matters(name):
            continue
        if value.is_floating_point() and value.any():
            found.append(name)
    return found


def changes_blocks(name: str) -> bool:
    """Whether a tensor of this name changes what the blocks of an encoder compute."""
    return bool(re.match(_ACTIVE, name)) and not re.search(_KEPT_OUT, name)


def shown_arguments(given: Tensors, own: Tensors) -> dict[str, Any]:
    """Arguments of timm's `VisionTransformer` that a checkpoint shows and the model does not have.

    A value of `?` is one that no tensor shows; damaged tensors show nothing.
    """
    try:
        return _shown(given, own)
    except (LookupError, ArithmeticError):
        return {}


def _shown(given: Tensors, own: Tensors) -> dict[str, Any]:
    found: dict[str, Any] = {}
    theirs, ours = _shapes(given), _shapes(own)
    patch, width = theirs.get("patch_embed.proj.weight"), _width(theirs)
    if patch is None or width is None:
        return {}
    if width != _width(ours):
        found |= {"embed_dim": width, "num_heads": "?"}
    depths = [num_blocks(t) for t in (given, own)]
    if depths[0] < depths[1] or (found and depths[0] != depths[1]):
        found["depth"] = depths[0]
    if patch[2:] != ours["patch_embed.proj.weight"][2:]:
        found["patch_size"] = patch[-1]
    found |= _mlp(theirs, ours)
    if "blocks.0.ls1.gamma" in theirs and "blocks.0.ls1.gamma" not in ours:
        found["init_values"] = 1e-5
    if "blocks.0.attn.q_norm.weight" in theirs and "blocks.0.attn.q_norm.weight" not in ours:
        found["qk_norm"] = True
    if "norm_pre.weight" in theirs and "norm_pre.weight" not in ours:
        found["pre_norm"] = True
    if "blocks.0.attn.qkv.bias" in ours and "blocks.0.attn.qkv.bias" not in theirs:
        found["qkv_bias"] = False
    registers = [t["reg_token"][1] if "reg_token" in t else 0 for t in (theirs, ours)]
    if registers[0] != registers[1]:
        found["reg_tokens"] = registers[0]
    covered = [_positions_of_prefix(t) for t in (theirs, ours)]
    if None not in covered and covered[0] != covered[1] and 0 in covered:
        found["no_embed_class"] = covered[0] == 0
    return found


def has_plain_form(encoder: Any) -> bool:
    """Whether `shown_arguments` are those of an encoder: it is timm's `VisionTransformer`."""
    from setr._timm import timm

    vit: Any = getattr(encoder, "vit", None)
    plain = isinstance(vit, timm.models.VisionTransformer)
    return plain and not hasattr(vit.patch_embed, "backbone")


def name_layer_scales(given: Tensors, own: Tensors) -> None:
    """Give layer scales the model's names: timm's classes call them `ls1.gamma` or `gamma_1`."""
    for name in list(given):
        found = re.match(r"(encoder\.vit\.blocks\.\d+\.)(?:ls([12])\.gamma|gamma_([12]))$", name)
        if found and name not in own:
            block, first, second = found.groups()
            other = f"{block}gamma_{first}" if first else f"{block}ls{second}.gamma"
            if other in own:
                given[other] = given.pop(name)


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(_VIT): tuple(value.shape)
        for name, value in tensors.items()
        if name.startswith(_VIT)
    }


def _width(shapes: dict[str, tuple[int, ...]]) -> int | None:
    norm = shapes.get("blocks.0.norm1.weight")
    return norm[0] if norm else None


def _positions_of_prefix(shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Number of prefix tokens with a position embedding; None if the grid is not square."""
    tokens = sum(shapes[n][1] for n in PREFIX_TOKENS if n in shapes)
    count = shapes.get("pos_embed", (0, 0))[1]
    return next((n for n in (0, tokens, 1) if is_square(count - n)), None)


def _mlp(theirs: dict[str, tuple[int, ...]], ours: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments in which the blocks' MLPs differ."""
    up, down = "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"
    if not {up, down} <= theirs.keys() or not {up, down} <= ours.keys():
        return {}
    packed = [t[up][0] == 2 * t[down][1] for t in (theirs, ours)]
    ratios = [t[up][0] / t[up][1] for t in (theirs, ours)]
    found: dict[str, Any] = {}
    if packed[0] and not packed[1]:
        found |= {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    if ratios[0] != ratios[1]:
        hidden, width = theirs[up]
        ratio = round(ratios[0], 5)
        found["mlp_ratio"] = (
            ratio if int(width * ratio) == hidden else round((hidden + 0.5) / width, 5)
        )
    return found


def as_option(arguments: dict[str, Any]) -> str:
    """Arguments as they are typed: `--model.encoder-args init_values=1e-05 reg_tokens=8`."""
    return "--model.encoder-args " + " ".join(f"{k}={v}" for k, v in arguments.items())


def other_bands(given: Tensor, own: Tensor) -> str:
    """What to say of a patch embedding for other bands; nothing where they are the same."""
    if given.ndim != 4 or own.ndim != 4 or given.shape[1] == own.shape[1]:
        return ""
    return (
        f"the weights are for images of {given.shape[1]} bands, the model for {own.shape[1]}: give "
        "data with these bands in their order (`bands` of data.yaml)"
    )
