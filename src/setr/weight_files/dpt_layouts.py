"""Checkpoints of DPT for segmentation: of its authors, transformers, mmsegmentation and smp.

`dpt` is the authors' layout (isl-org/DPT), `dpt-transformers` that of transformers' class
DPTForSemanticSegmentation, `dpt-smp` that of segmentation_models.pytorch. mmsegmentation's is a
part of its common layout (`setr_layouts.py`). Their fusions run from deep to shallow, except the
authors'; ours from shallow to deep. The deepest one has a first residual unit in all but
mmsegmentation; only segmentation_models.pytorch uses it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from setr.errors import SetrError
from setr.layers.dpt import SCALES
from setr.weight_files.encoder_layouts import huggingface, timm
from setr.weight_files.naming import (
    SMP,
    Rule,
    Tensors,
    Translation,
    count_parts,
    identity_norm,
    recorded,
    rename,
)

READOUT = "neck.reassemble.0.readout.0.weight"
"""The first layer that reads the class token; its input is twice as wide as its output."""
_UNITS = {"1": "lateral", "2": "refine"}
_LAYERS = {"1": "first", "2": "second"}
_KINDS = {"conv": "0", "convolution": "0", "bn": "1", "batch_norm": "1"}
_STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the maps that are fused, shallow to deep, whatever the patch size."""
_DIGITS = 6
"""Of a mean or standard deviation in fp32."""


def authors_dpt(tensors: Tensors) -> Translation:
    """A checkpoint of the DPT authors' repository."""
    encoder, rest = _split(tensors, "pretrained.model.")
    rules: list[Rule] = [
        (
            r"pretrained\.act_postprocess(\d)\.(0\.project\.0|3|4)\.(.+)",
            lambda m: f"neck.reassemble.{int(m[1]) - 1}.{_POSTPROCESS[m[2]]}.{m[3]}",
        ),
        (r"scratch\.layer(\d)_rn\.(.+)", lambda m: f"neck.reassemble.{int(m[1]) - 1}.conv.{m[2]}"),
        (
            r"scratch\.refinenet(\d)\.out_conv\.(.+)",
            lambda m: f"neck.fusions.{int(m[1]) - 1}.project.{m[2]}",
        ),
        (
            r"scratch\.refinenet(\d)\.resConfUnit(\d)\.(conv|bn)(\d)\.(.+)",
            lambda m: _unit(int(m[1]) - 1, m[2], m[4], m[3], m[5]),
        ),
        *_sequential_head(r"scratch\.output_conv", "decoder.conv", "decoder"),
        *_sequential_head("auxlayer", "aux_heads.0.convs.0", "aux_heads.0"),
    ]
    return _joined("dpt", timm(encoder), rest, rules)


def transformers_dpt(tensors: Tensors) -> Translation:
    """A checkpoint of transformers' DPTForSemanticSegmentation."""
    encoder, rest = _split(tensors, "dpt.")
    last = count_parts(rest, r"neck\.fusion_stage\.layers\.(\d+)\.") - 1
    stage, fusion = r"neck\.reassemble_stage\.", r"neck\.fusion_stage\.layers\.(\d+)\."
    rules: list[Rule] = [
        (stage + r"layers\.(\d)\.projection\.(.+)", r"neck.reassemble.\1.project.\2"),
        (stage + r"layers\.(\d)\.resize\.(.+)", r"neck.reassemble.\1.resample.\2"),
        (stage + r"readout_projects\.(\d)\.0\.(.+)", r"neck.reassemble.\1.readout.0.\2"),
        (r"neck\.convs\.(\d)\.(.+)", r"neck.reassemble.\1.conv.\2"),
        (fusion + r"projection\.(.+)", lambda m: f"neck.fusions.{last - int(m[1])}.project.{m[2]}"),
        (
            fusion + r"residual_layer(\d)\.(convolution|batch_norm)(\d)\.(.+)",
            lambda m: _unit(last - int(m[1]), m[2], m[4], m[3], m[5]),
        ),
        *_sequential_head(r"head\.head", "decoder.conv", "decoder"),
        *_sequential_head(r"auxiliary_head\.head", "aux_heads.0.convs.0", "aux_heads.0"),
    ]
    return _joined("dpt-transformers", huggingface(encoder), rest, rules)


def smp_dpt(tensors: Tensors) -> Translation:
    """A checkpoint of segmentation_models.pytorch's DPT.

    Its own examples keep mean and standard deviation in the module around the model.
    """
    encoder, rest = _split(tensors, "encoder.model.")
    last = count_parts(rest, r"decoder\.fusion_blocks\.(\d+)\.") - 1
    block, fusion = r"decoder\.reassemble_blocks\.(\d+)\.", r"decoder\.fusion_blocks\.(\d+)\."
    rules: list[Rule] = [
        (r"decoder\.projection_blocks\.(\d+)\.project\.(.+)", r"neck.reassemble.\1.readout.\2"),
        (block + r"project_to_out_channel\.(.+)", r"neck.reassemble.\1.project.\2"),
        (block + r"upsample\.(.+)", r"neck.reassemble.\1.resample.\2"),
        (block + r"project_to_feature_dim\.(.+)", r"neck.reassemble.\1.conv.\2"),
        (fusion + r"project\.(.+)", lambda m: f"neck.fusions.{last - int(m[1])}.project.{m[2]}"),
        (
            fusion + r"residual_conv_block(\d)\.(conv|batch_norm)_(\d)\.(.+)",
            lambda m: _unit(last - int(m[1]), m[2], m[4], m[3], m[5]),
        ),
        *_sequential_head(r"segmentation_head\.head", "decoder.conv", "decoder"),
    ]
    around: dict[str, Any] = {
        name: [round(value, _DIGITS) for value in rest.pop(name).flatten().tolist()]
        for name in ("mean", "std")
        if name in rest
    }
    found = _joined(SMP, timm(encoder), rest, rules)
    return dataclasses.replace(found, settings=around)


def mmseg_dpt(tensors: Tensors) -> list[Rule]:
    """Rules for mmsegmentation's DPT head, called `decoder` already; none for other heads."""
    if not any(name.startswith("decoder.reassemble_blocks.") for name in tensors):
        return []
    last = count_parts(tensors, r"decoder\.fusion_blocks\.(\d+)\.") - 1
    block, fusion = r"decoder\.reassemble_blocks\.", r"decoder\.fusion_blocks\.(\d+)\."
    return [
        (block + r"projects\.(\d)\.conv\.(.+)", r"neck.reassemble.\1.project.\2"),
        (block + r"resize_layers\.(\d)\.(.+)", r"neck.reassemble.\1.resample.\2"),
        (block + r"readout_projects\.(\d)\.0\.(.+)", r"neck.reassemble.\1.readout.0.\2"),
        (r"decoder\.convs\.(\d)\.conv\.(.+)", r"neck.reassemble.\1.conv.\2"),
        (
            fusion + r"project\.conv\.(.+)",
            lambda m: f"neck.fusions.{last - int(m[1])}.project.{m[2]}",
        ),
        (
            fusion + r"res_conv_unit(\d)\.conv(\d)\.(conv|bn)\.(.+)",
            lambda m: _unit(last - int(m[1]), m[2], m[3], m[4], m[5]),
        ),
        (r"decoder\.project\.(conv|bn)\.(.+)", lambda m: f"decoder.conv.{_KINDS[m[1]]}.{m[2]}"),
    ]


_POSTPROCESS = {"0.project.0": "readout.0", "3": "project", "4": "resample"}


def _unit(level: int, unit: str, layer: str, kind: str, rest: str) -> str:
    """Our name of a tensor in a residual unit of a fusion."""
    return f"neck.fusions.{level}.{_UNITS[unit]}.{_LAYERS[layer]}.{_KINDS[kind]}.{rest}"


def _sequential_head(there: str, conv: str, head: str) -> list[Rule]:
    """Rules for a head of convolution, batch norm, ReLU, dropout, classifier in one Sequential."""
    return [
        (there + r"\.([01])\.(.+)", rf"{conv}.\1.\2"),
        (there + r"\.4\.(.+)", rf"{head}.classifier.\1"),
    ]


def _split(tensors: Tensors, prefix: str) -> tuple[Tensors, Tensors]:
    """The tensors of the encoder, without its prefix, and all others."""
    encoder = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    if any(".backbone." in f".{name}" for name in encoder):
        raise SetrError(
            "DPT-Hybrid, with a ResNet in front of the transformer, is not supported; give a DPT "
            "on a plain ViT, such as dpt-large-ade"
        )
    return encoder, {n: v for n, v in tensors.items() if not n.startswith(prefix)}


def _joined(dialect: str, encoder: Translation, rest: Tensors, rules: list[Rule]) -> Translation:
    """Encoder and heads with our names, without what the model never uses."""
    tensors, unexpected = rename(rest, rules)
    if dialect != SMP:
        last = count_parts(tensors, r"neck\.fusions\.(\d+)\.") - 1
        unused = f"neck.fusions.{last}.lateral."
        tensors = {n: v for n, v in tensors.items() if not n.startswith(unused)}
    filled = _fold_biases(tensors)
    for name, value in encoder.tensors.items():
        if not behind_blocks(name):
            tensors[f"encoder.vit.{name}"] = value
    unexpected += [n for n in encoder.unexpected if not n.startswith("pooler.")]
    return Translation(dialect, tensors, whole=True, unexpected=unexpected, filled=filled)


def behind_blocks(name: str) -> bool:
    """Whether an encoder's tensor belongs to a layer behind its last block."""
    return bool(re.match(r"(norm|head|head_dist|fc_norm|pre_logits|attn_pool|neck)\.", name))


def _fold_biases(tensors: Tensors) -> list[str]:
    """Give the biases of residual units to their batch norms; units without one get the identity.

    Ours have norms and no biases, as the published models; the classes of transformers also build
    the other forms, by default without norms.

    Returns:
        Names of the tensors that were added.
    """
    filled: list[str] = []
    for name in [n for n in tensors if re.search(r"\.(lateral|refine)\.\w+\.0\.weight$", n)]:
        stem = name.removesuffix("0.weight")
        bias = tensors.pop(f"{stem}0.bias", None)
        if f"{stem}1.weight" not in tensors:
            added = identity_norm(len(tensors[name]), f"{stem}1.")
            tensors |= added
            filled += added
        if bias is not None:
            tensors[f"{stem}1.running_mean"] = tensors[f"{stem}1.running_mean"] - bias
    return filled


def dpt_arguments(found: Translation) -> dict[str, Any]:
    """Keyword arguments of `SETR` for a DPT, except the encoder's."""
    t, port = found.tensors, found.dialect == "mmseg"
    resampled = {"mmseg": "bicubic_plain", SMP: "bicubic"}
    count = count_parts(t, r"neck\.reassemble\.(\d+)\.")
    aux = {"num_convs": 1, "concat_input": False}
    if "aux_heads.0.classifier.weight" in t:
        aux["channels"] = t["aux_heads.0.classifier.weight"].shape[1]
    return {
        "pos_interp": resampled.get(found.dialect, "bilinear"),
        "prefix_tokens": "keep",
        "neck_args": {
            "channels": len(t["neck.reassemble.0.conv.weight"]),
            "reassembled": tuple(
                len(t[f"neck.reassemble.{i}.project.weight"]) for i in range(count)
            ),
            **(_smp_neck(t, count) if found.dialect == SMP else {}),
        },
        "decoder_args": {
            "channels": t["decoder.classifier.weight"].shape[1],
            "final_scale": 1 if port else 2,
        },
        "aux_args": aux,
    }


def _smp_neck(t: Tensors, count: int) -> dict[str, Any]:
    """What `DPTNeck` is called with for segmentation_models.pytorch only."""
    neck: dict[str, Any] = {"deepest_lateral": True}
    patch = t["encoder.vit.patch_embed.proj.weight"].shape[-1]
    if patch != SCALES[0] * _STRIDES[0]:
        neck["scales"] = tuple(patch / stride for stride in _STRIDES[:count])
    layer = t.get(READOUT)
    if layer is not None and layer.shape[0] == layer.shape[1]:
        neck["project"] = True
    return neck


_NORM_EPS = {"mmseg": 1e-5, "dpt-transformers": 1e-12, "dpt": 1e-6}
"""Epsilon of the layer norms in DPT's encoder, where nothing is recorded."""


def dpt_encoder(found: Translation, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of DPT's encoder: the readout, and the epsilon of its norms."""
    readout = str(recorded(meta, "readout_type") or "ignore")
    if READOUT in found.tensors:
        readout = "concat"
    return {"readout": readout, "norm_eps": meta.get("norm_eps") or _NORM_EPS[found.dialect]}
