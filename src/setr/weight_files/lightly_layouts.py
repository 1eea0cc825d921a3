"""Models that LightlyTrain (0.18) exported: EoMT and linear heads, on DINOv2 and DINOv3.

Its encoders have Meta's names. Its predictions leave out the channel of ignored classes, which is
the last one of a linear head.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.weight_files.encoder_layouts import dinov3, timm
from setr.weight_files.eomt import dino_encoder, encoder_blocks, joined
from setr.weight_files.naming import LIGHTLY_LINEAR, Rule, Tensors, Translation, identity_norm

_EPS = 1e-5
"""Epsilon of EoMT's norms between masks and patches; that of the others is 1e-6."""
_CLASSIFIER = "decoder.classifier."
_SIDE = 512
"""Side in pixels of images for DINOv3, which no tensor shows, where none is recorded."""


def eomt_lightly(tensors: Tensors) -> Translation:
    """A semantic model on DINOv2 or DINOv3 that LightlyTrain exported, or its checkpoint."""
    heads: list[Rule] = [
        (r"model\.queries\.weight", "decoder.queries"),
        (r"model\.(class_head|mask_head|upscale)\.(.+)", r"decoder.\1.\2"),
    ]
    found = _joined(tensors, "eomt", r"backbone\.", heads)
    found.settings["upscale_eps"] = _EPS
    _fold_position(found.tensors)
    return found


def linear_lightly(tensors: Tensors) -> Translation:
    """A linear head and its encoder; of other models that are made like this, the encoder."""
    heads: list[Rule] = [(r"model\.head\.(weight|bias)", rf"{_CLASSIFIER}\1")]
    found = _joined(tensors, LIGHTLY_LINEAR, r"backbone\._model\.", heads)
    own = found.tensors
    if f"{_CLASSIFIER}weight" not in own or own[f"{_CLASSIFIER}weight"].ndim != len("oi"):
        bare = {name.removeprefix("encoder.vit."): value for name, value in own.items()}
        return dataclasses.replace(found, dialect="timm", tensors=bare, whole=False)
    if "encoder.vit.reg_token" in own:
        _fold_position(own)
    for part in ("weight", "bias"):  # the norm of the patches, and none of the batch
        own[f"decoder.norms.0.{part}"] = own.pop(f"encoder.vit.norm.{part}")
    own[f"{_CLASSIFIER}weight"] = own[f"{_CLASSIFIER}weight"][:, :, None, None]
    norm = identity_norm(own[f"{_CLASSIFIER}weight"].shape[1], "decoder.batch_norm.")
    own.update(norm)
    return dataclasses.replace(found, filled=[*norm])


def _joined(tensors: Tensors, dialect: str, backbone: str, heads: list[Rule]) -> Translation:
    """The heads, and the encoder called `backbone` (regular expression) of DINOv2 or DINOv3."""
    on_dinov3 = any(re.search(rf"{backbone}rope_embed\.", name) for name in tensors)
    return joined(
        tensors,
        dialect=dialect,
        encoder=rf"model\.{backbone}(?!mask_token$)(.+)",
        layout=dinov3 if on_dinov3 else timm,
        heads=heads,
        unused=rf"model\.{backbone}mask_token|criterion\..+",
    )


def as_exported(found: Translation, meta: Mapping[str, Any]) -> Translation:
    """A model as its file's settings say: without ignored classes, with positions for its windows.

    A DINOv2 without registers resamples positions in a way of its own, which is done here once.

    Args:
        found: a file of any kind.
        meta: values stored beside its tensors.

    Raises:
        one of `BROKEN`: a setting of another type.
    """
    if "image_normalize" not in meta or not found.whole:
        return found
    tensors, settings = dict(found.tensors), lightly_settings(meta)
    if found.dialect == LIGHTLY_LINEAR:
        for name in (f"{_CLASSIFIER}weight", f"{_CLASSIFIER}bias"):
            tensors[name] = tensors[name][: len(settings["classes"])]
    table = tensors.get("encoder.vit.pos_embed")
    if table is not None and "encoder.vit.reg_token" not in tensors:
        patch = tensors["encoder.vit.patch_embed.proj.weight"].shape[-1]
        tensors["encoder.vit.pos_embed"] = _resampled(table, settings["side"] // patch)
    return dataclasses.replace(found, tensors=tensors)


def _resampled(table: Tensor, side: int) -> Tensor:
    """Positions (1, [1 +] n², C) for a grid of `side`, as in DINOv2's code with its offset of 0.1.

    The offset moves the samples a little (facebookresearch/dinov2, `interpolate_pos_encoding`).
    """
    own = math.isqrt(table.shape[1])
    if own == side:
        return table
    prefix = table.shape[1] - own * own
    grid = table[:, prefix:].float().unflatten(1, (own, own)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / own
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:, :prefix], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def linear_architecture(
    found: Translation,
    meta: Mapping[str, Any],
    *,
    num_heads: int | None,
    img_size: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """Keyword arguments of `SETR` for a linear head; arguments as of `eomt_architecture`.

    For other sizes than that of its windows, DINOv2 with registers resamples positions with
    antialiasing, the older one without.
    """
    t = found.tensors
    encoder, shape, grid_side = dino_encoder(t, num_heads)
    plain = "encoder.vit.pos_embed" in t and "encoder.vit.reg_token" not in t
    if plain:
        encoder = encoder.replace("_reg4", "")
        del shape["reg_tokens"]
    return {
        "encoder": encoder,
        "encoder_args": shape,
        "decoder": "linear",
        "num_classes": len(t[f"{_CLASSIFIER}weight"]),
        "taps": (encoder_blocks(t),),
        "img_size": img_size or grid_side or meta.get("side") or _SIDE,
        "pos_interp": "bicubic_plain" if plain else "bicubic",
    }


def _fold_position(own: Tensors) -> None:
    """Add DINOv2's position of the class token to it, as timm does beforehand."""
    if (table := own.get("encoder.vit.pos_embed")) is not None:
        own["encoder.vit.pos_embed"] = table[:, 1:]
        own["encoder.vit.cls_token"] = own["encoder.vit.cls_token"] + table[:, :1]


def lightly_settings(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What an export of LightlyTrain records about a model, by the names used for others.

    Returns:
        `mean`, `std`, `side` (of the windows in pixels), `classes`, by the ids of its data, and of
        EoMT `query_blocks`. Empty for other files.

    Raises:
        one of `BROKEN`: a setting of another type.
    """
    if "image_normalize" not in meta:
        return {}
    blocks = {"query_blocks": int(meta["num_joint_blocks"])} if "num_joint_blocks" in meta else {}
    return {
        **blocks,
        "mean": [float(value) for value in meta["image_normalize"]["mean"]],
        "std": [float(value) for value in meta["image_normalize"]["std"]],
        "side": min(int(side) for side in meta["image_size"]),
        "classes": {int(key): str(name) for key, name in meta["classes"].items()},
    }
