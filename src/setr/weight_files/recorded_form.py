"""What the configuration in mmsegmentation's training checkpoints says about the network.

No tensor shows the order of the channels, the mode of the position grid, or how the heads resize.
What models here can compute is taken; anything else is refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from setr.errors import SetrError
from setr.reading.parsed import BROKEN, fault_of
from setr.weight_files.dialects import translate
from setr.weight_files.lightly_layouts import as_exported
from setr.weight_files.naming import SMP, Tensors, Translation, part_of
from setr.weight_files.recorded_text import reads_bgr, settings_of
from setr.weight_files.tensorfiles import TensorFile

_POOL_SCALES = [1, 2, 3, 6]
_MODES = {"bilinear": "bilinear", "bicubic": "bicubic_plain"}
_THRESHOLD = 0.3
"""Probability from which a binary model of one channel sees its class, in mmsegmentation."""
_HALF = 0.5
"""The same in segmentation_models.pytorch."""


def translate_file(file: TensorFile, source: str) -> Translation:
    """The tensors of a file with our names, for images whose channels are red, green and blue.

    A binary model of one channel gets a second one for the background, which gives the same masks.

    Raises:
        SetrError: as `translate`.
    """
    found = translate(file.tensors, source)
    try:
        found = as_exported(found, file.meta)
    except BROKEN as error:
        raise SetrError(
            f"{source}: what is stored beside its tensors does not describe a known model "
            f"({fault_of(error)})"
        ) from None
    tensors = dict(found.tensors)
    if found.dialect == SMP:
        _with_background(tensors, _HALF)
    if found.dialect != "mmseg":
        return dataclasses.replace(found, tensors=tensors)
    values = settings_of(file.meta)
    patches = "encoder.vit.patch_embed.proj.weight"
    if reads_bgr(values) and patches in tensors and tensors[patches].shape[1] == len("rgb"):
        tensors[patches] = tensors[patches].flip(1)
    _with_background(tensors, part_of(values, "model", "decode_head").get("threshold"))
    return dataclasses.replace(found, tensors=tensors)


def _with_background(tensors: Tensors, threshold: Any) -> None:
    """Add a channel of zeros to classifiers that have one: sigmoid(x) > t as a softmax of two."""
    share = threshold if isinstance(threshold, float) and 0 < threshold < 1 else _THRESHOLD
    for name in [n for n in tensors if re.fullmatch(r"(decoder|aux_heads\.\d)\.classifier\..+", n)]:
        value = tensors[name]
        if len(value) == 1:
            if name.endswith("bias"):
                value = value - math.log(share / (1 - share))
            tensors[name] = torch.cat([torch.zeros_like(value), value])


def require_known_form(meta: Mapping[str, Any], source: str) -> None:
    """Refuse a recorded network that computes something else than any model here.

    Raises:
        SetrError: heads that align corners, other pooling grids, inputs or activations.
    """
    values = settings_of(meta)
    head, backbone = (part_of(values, "model", name) for name in ("decode_head", "backbone"))
    indices = backbone.get("out_indices")
    last = (-1, len(indices) - 1 if isinstance(indices, list) else 0)
    wrong = {
        "decode_head.align_corners": head.get("align_corners") is True,
        "decode_head.pool_scales": head.get("pool_scales") not in (None, _POOL_SCALES),
        "decode_head.in_index": isinstance(head.get("in_index"), int)
        and head["in_index"] not in last,
        "decode_head.act_cfg": part_of(head, "act_cfg").get("type") not in (None, "ReLU"),
        "backbone.act_cfg": part_of(backbone, "act_cfg").get("type") not in (None, "GELU"),
    }
    for name in [name for name, is_wrong in wrong.items() if is_wrong]:
        part, key = name.split(".")
        value = part_of(values, "model", part)[key]
        raise SetrError(
            f"{source}: its configuration has {name} = {value!r:.60}, which is not computed here; "
            "as a start for training it can be used (--model.pretrained)"
        )


def recorded_arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `SETR` that the recorded backbone states; none without a plain ViT."""
    backbone = part_of(settings_of(meta), "model", "backbone")
    mode = backbone.get("interpolate_mode", "bicubic")
    if backbone.get("type") != "VisionTransformer" or mode not in _MODES:
        return {}
    kept = backbone.get("with_cls_token", True)
    return {"pos_interp": _MODES[mode], "prefix_tokens": "keep" if kept else "drop"}
