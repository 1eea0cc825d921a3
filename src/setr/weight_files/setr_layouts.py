"""Whole SETR and Segmenter models, and DINOv2's linear heads: names, and arguments of the heads.

SETR and Segmenter models are of their authors or of mmsegmentation ("the port"), which also has
UPerNet (`upernet.py`) and DPT (`dpt_layouts.py`). Tensors that the port does not have, such as
biases before batch norms, are filled in so that the model computes the same. Its MLA levels run
from deep to shallow; ours from shallow to deep.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from setr.weight_files.dpt_layouts import mmseg_dpt
from setr.weight_files.naming import (
    CONV_BN,
    Rule,
    Tensors,
    Translation,
    count_parts,
    identity_norm,
    numbered,
    rename,
)
from setr.weight_files.relative_bias import drop_key_bias, without_pairs
from setr.weight_files.upernet import MARKER, upernet_rules

_HEADS: list[Rule] = [
    (r"decode_head\.(.+)", r"decoder.\1"),
    (r"auxiliary_head\.(\d+\..+)", r"aux_heads.\1"),
    (r"auxiliary_head\.(\D.+)", r"aux_heads.0.\1"),
    (r"((?:backbone|neck)\..+)", r"\1"),
]
_HEAD = r"(decoder|aux_heads\.\d+)"
_PREFIX = r"cls_token|dist_token|pos_embed"


def official(tensors: Tensors) -> Translation:
    """A checkpoint of the SETR authors' repository."""
    tensors, unexpected = rename(tensors, _HEADS)

    def convolution(found: re.Match) -> str:
        head, i, kind = found.groups()
        has_norm = f"{head}.syncbn_fc_{i}.weight" in tensors
        return f"{head}.convs.{i}.0.{kind}" if has_norm else f"{head}.classifier.{kind}"

    def level(part: str) -> Callable[[re.Match], str]:  # the authors count levels 2 to 5
        return lambda m: f"neck.{part}.{int(m[1]) - 2}.{m[2]}"

    rules: list[Rule] = [
        (rf"backbone\.((?:blocks|patch_embed)\..+|{_PREFIX})", r"encoder.vit.\1"),
        (r"backbone\.norm_(\d)\.(.+)", r"neck.norms.\1.\2"),
        (r"backbone\.mla\.mla_p(\d)_1x1\.(.+)", level("reduce")),
        (r"backbone\.mla\.mla_p(\d)\.(.+)", level("refine")),
        (
            r"decoder\.mlahead\.head(\d)\.(\d)\.(.+)",
            lambda m: f"decoder.streams.{int(m[1]) - 2}.{int(m[2]) // 3}.{int(m[2]) % 3}.{m[3]}",
        ),
        (r"decoder\.cls\.(.+)", r"decoder.classifier.\1"),
        (r"(aux_heads\.\d+)\.aux\.(.+)", r"\1.classifier.\2"),
        (rf"{_HEAD}\.norm\.(.+)", r"\1.norm.\2"),
        (rf"{_HEAD}\.syncbn_fc_(\d)\.(.+)", r"\1.convs.\2.1.\3"),
        (rf"{_HEAD}\.conv_(\d)\.(.+)", convolution),
    ]
    renamed, rest = rename(tensors, rules)
    # the authors' heads also have an unused classifier `conv_seg`
    unexpected += [name for name in rest if ".conv_seg." not in name]
    return Translation("official", renamed, whole=True, unexpected=unexpected)


def mmseg(tensors: Tensors) -> Translation:
    """A checkpoint of mmsegmentation."""
    tensors, unexpected = rename(without_pairs(tensors), _HEADS)
    last = sum(re.fullmatch(r"neck\.norm\.\d+\.weight", name) is not None for name in tensors) - 1

    def level(found: re.Match) -> int:  # deepest first in the port
        return last - int(found[1])

    rules: list[Rule] = [
        (rf"backbone\.({_PREFIX})", r"encoder.vit.\1"),
        (r"backbone\.patch_embed\.projection\.(.+)", r"encoder.vit.patch_embed.proj.\1"),
        (rf"backbone\.layers\.{_BLOCK}", _block("encoder.vit.blocks")),
        (
            r"backbone\.layers\.(\d+)\.(gamma_[12]|attn\.(?:(?:qkv|proj)\..+|[qv]_bias|relative.+))",
            r"encoder.vit.blocks.\1.\2",
        ),
        *upernet_rules(tensors),
        *_mmseg_segmenter(tensors),
        *mmseg_dpt(tensors),
        (r"neck\.norm\.(\d)\.(.+)", r"neck.norms.\1.\2"),
        (rf"neck\.mla\.channel_proj\.(\d)\.{CONV_BN}", numbered(r"neck.reduce.\1")),
        (
            rf"neck\.mla\.feat_extract\.(\d)\.{CONV_BN}",
            numbered(lambda m: f"neck.refine.{level(m)}"),
        ),
        (rf"{_HEAD}\.conv_seg\.(.+)", r"\1.classifier.\2"),
        (rf"{_HEAD}\.norm\.(.+)", r"\1.norm.\2"),
    ]
    if last >= 0:
        stream = numbered(lambda m: f"decoder.streams.{level(m)}.{m[2]}")
        rules.append((rf"decoder\.up_convs\.(\d)\.(\d)\.{CONV_BN}", stream))
    rules.append((rf"{_HEAD}\.up_convs\.(\d)\.0\.{CONV_BN}", numbered(r"\1.convs.\2")))
    renamed, rest = rename(tensors, rules)
    if last >= 0:  # the classifier's input channels follow the reversed levels
        weight = renamed["decoder.classifier.weight"]
        parts = weight.chunk(last + 1, dim=1)
        renamed["decoder.classifier.weight"] = torch.cat(parts[::-1], dim=1)
    drop_key_bias(renamed)
    filled = _fill_biases(renamed) + _fill_batch_norm(renamed)
    return Translation("mmseg", renamed, whole=True, unexpected=unexpected + rest, filled=filled)


def _mmseg_segmenter(tensors: Tensors) -> list[Rule]:
    """Rules for the port's Segmenter: the encoder's final norm and the mask transformer.

    Its linear head is a single classifier, for which `mmseg` has a rule.
    """
    if any(re.match(r"decoder\.up_convs|neck\.", name) for name in tensors):
        return []
    norm = "norm" if "decoder.cls_emb" in tensors else "norms.0"
    return [
        (r"backbone\.ln1\.(.+)", rf"decoder.{norm}.\1"),
        (r"decoder\.cls_emb", "decoder.class_tokens"),
        (rf"decoder\.layers\.{_BLOCK}", _block("decoder.blocks")),
        (r"decoder\.dec_proj\.(.+)", r"decoder.project.\1"),
        (r"decoder\.decoder_norm\.(.+)", r"decoder.last_norm.\1"),
        (r"decoder\.classes_proj\.(.+)", r"decoder.class_proj.\1"),
        (r"(decoder\.(?:patch_proj|mask_norm)\..+)", r"\1"),
    ]


def segmenter(tensors: Tensors) -> Translation:
    """A checkpoint of the Segmenter authors' repository (rstrudel/segmenter, segm/model)."""
    rules: list[Rule] = [
        (rf"encoder\.((?:blocks|patch_embed)\..+|{_PREFIX})", r"encoder.vit.\1"),
        (r"encoder\.norm\.(.+)", r"decoder.norm.\1"),
        (r"decoder\.cls_emb", "decoder.class_tokens"),
        (r"(decoder\.(?:blocks|mask_norm)\..+)", r"\1"),
        (r"decoder\.proj_dec\.(.+)", r"decoder.project.\1"),
        (r"decoder\.decoder_norm\.(.+)", r"decoder.last_norm.\1"),
        (r"decoder\.proj_patch", "decoder.patch_proj.weight"),
        (r"decoder\.proj_classes", "decoder.class_proj.weight"),
    ]
    renamed, rest = rename(tensors, rules)
    for part in ("patch", "class"):  # the authors multiply by these from the right
        renamed[f"decoder.{part}_proj.weight"] = renamed[f"decoder.{part}_proj.weight"].T
    # the encoder also has its unused ImageNet classifier
    unexpected = [name for name in rest if not name.startswith("encoder.head")]
    return Translation("segmenter", renamed, whole=True, unexpected=unexpected)


def linear(tensors: Tensors) -> Translation:
    """A linear head of DINOv2: batch norm and classifier, without the encoder."""
    rules: list[Rule] = [
        (r"decode_head\.bn\.(.+)", r"decoder.batch_norm.\1"),
        (r"decode_head\.conv_seg\.(.+)", r"decoder.classifier.\1"),
    ]
    return Translation("linear", *rename(tensors, rules), whole=True)


_BLOCK_PARTS = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.attn": "attn",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
_BLOCK = rf"(\d+)\.({'|'.join(map(re.escape, _BLOCK_PARTS))})[._](.+)"
"""End of a pattern for the tensors of a block in mmsegmentation."""


def _block(blocks: str) -> Callable[[re.Match], str]:
    """Replacement for a pattern that ends in `_BLOCK`."""

    def name(found: re.Match) -> str:
        rest = found[3].replace("in_proj_", "qkv.").replace("out_proj.", "proj.")
        return f"{blocks}.{found[1]}.{_BLOCK_PARTS[found[2]]}.{rest}"

    return name


def _fill_biases(tensors: Tensors) -> list[str]:
    """Add zero biases where the port has none: before batch norms and in the patch embedding."""
    filled, pattern = [], r".*patch_embed\.proj\.weight"
    if MARKER not in tensors:  # UPerNet's convolutions have none here, either
        pattern += rf"|{_HEAD}\.convs\.\d\.0\.weight"
    for name, value in list(tensors.items()):
        if re.fullmatch(pattern, name):
            bias = name.replace(".weight", ".bias")
            if bias not in tensors:
                tensors[bias] = value.new_zeros(len(value))
                filled.append(bias)
    return filled


def _fill_batch_norm(tensors: Tensors) -> list[str]:
    """Add an identity batch norm in front of the port's linear classifier."""
    if "decoder.norms.0.weight" not in tensors:
        return []
    named = identity_norm(len(tensors["decoder.norms.0.weight"]), "decoder.batch_norm.")
    tensors.update(named)
    return list(named)


def upsampling_arguments(t: Tensors, port: bool) -> dict[str, Any]:
    """Keyword arguments of `SETR` for Naive and PUP, except the encoder's and the usual ones.

    Args:
        t: tensors with our names.
        port: whether the model is of mmsegmentation.
    """
    main: dict[str, Any] = {"channels": t["decoder.classifier.weight"].shape[1]}
    if t["decoder.convs.0.0.weight"].shape[-1] == 3:  # PUP
        main["num_convs"] = count_parts(t, r"decoder\.convs\.(\d+)\.")
        main["final_scale"] = 2 if port else 1
    else:
        main["final_scale"] = 4 if port else 1
    aux: dict[str, Any] = {}
    if "aux_heads.0.classifier.weight" in t:
        kernel = t["aux_heads.0.convs.0.0.weight"].shape[-1]
        aux = {
            "channels": t["aux_heads.0.classifier.weight"].shape[1],
            "num_convs": count_parts(t, r"aux_heads\.0\.convs\.(\d+)\."),
            "kernel_size": kernel,
            "scale": 4 if port else 1,
            "final_scale": 4 if port or kernel == 3 else 1,
        }
    return {"pos_interp": "bilinear", "decoder_args": main, "aux_args": aux}


def mla_arguments(t: Tensors, port: bool) -> dict[str, Any]:
    """As `upsampling_arguments`, for MLA."""
    return {
        "pos_interp": "bilinear",
        "prefix_tokens": "drop",
        "neck_args": {"channels": t["neck.reduce.0.0.weight"].shape[0]},
        "decoder_args": {
            "stream_channels": t["decoder.streams.0.0.0.weight"].shape[0],
            "classifier_kernel": t["decoder.classifier.weight"].shape[-1],
            "align_corners": not port,
        },
        "aux_args": {"bias": "aux_heads.0.classifier.bias" in t},
    }


def segmenter_arguments(t: Tensors, port: bool) -> dict[str, Any]:
    """As `upsampling_arguments`, for Segmenter and for linear heads."""
    decoder: dict[str, Any] = {}
    if "decoder.class_tokens" in t:
        hidden, width = t["decoder.blocks.0.mlp.fc1.weight"].shape
        decoder = {
            "num_layers": count_parts(t, r"decoder\.blocks\.(\d+)\."),
            "channels": width,
            "mlp_ratio": hidden / width,
            "encoder_eps": 1e-6 if port else 1e-5,
        }
    return {"pos_interp": "bicubic_plain" if port else "bilinear", "decoder_args": decoder}
