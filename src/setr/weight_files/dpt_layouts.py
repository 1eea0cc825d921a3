"""Checkpoints of DPT for segmentation: of its authors, transformers and mmsegmentation.

`dpt` is the authors' layout (isl-org/DPT), `dpt-transformers` that of transformers' class
DPTForSemanticSegmentation. mmsegmentation's is a part of its common layout (`setr_layouts.py`). The
fusions of transformers and mmsegmentation run from deep to shallow, ours from shallow to deep. The
deepest one has an unused residual unit in all but mmsegmentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from setr.errors import SetrError
from setr.weight_files.encoder_layouts import huggingface, timm
from setr.weight_files.naming import (
    Rule,
    Tensors,
    Translation,
    count_parts,
    fill_batch_norm,
    recorded,
    rename,
)

_UNIT = r"neck\.fusions\.\d+\.(lateral|refine)\.(first|second)\."
"""Our names of a convolution (0) and its batch norm (1) in a residual unit."""
_UNITS = {"1": "lateral", "2": "refine"}
_LAYERS = {"1": "first", "2": "second"}
_KINDS = {"conv": "0", "convolution": "0", "bn": "1", "batch_norm": "1"}


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
        *_sequential_heads(r"scratch\.output_conv", "auxlayer"),
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
        *_sequential_heads(r"head\.head", r"auxiliary_head\.head"),
    ]
    found = _joined("dpt-transformers", huggingface(encoder), rest, rules)
    found.filled.extend(_normalise(found.tensors))
    return found


def _normalise(tensors: Tensors) -> list[str]:
    """Make the biases of residual units part of their batch norms, which are added where none are.

    With transformers' own defaults, and so in models that were fine-tuned from one for depth, the
    units have biases in place of norms.
    """
    filled = []
    for name in [n for n in tensors if re.fullmatch(_UNIT + r"0\.bias", n)]:
        norm, bias = name.replace("0.bias", "1"), tensors.pop(name)
        if f"{norm}.running_mean" in tensors:
            tensors[f"{norm}.running_mean"] = tensors[f"{norm}.running_mean"] - bias
        else:
            filled += fill_batch_norm(tensors, norm, bias)
    return filled


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


def _sequential_heads(main: str, auxiliary: str) -> list[Rule]:
    """Rules for heads of convolution, batch norm, ReLU, dropout, classifier in one Sequential."""
    return [
        (main + r"\.([01])\.(.+)", r"decoder.conv.\1.\2"),
        (main + r"\.4\.(.+)", r"decoder.classifier.\1"),
        (auxiliary + r"\.([01])\.(.+)", r"aux_heads.0.convs.0.\1.\2"),
        (auxiliary + r"\.4\.(.+)", r"aux_heads.0.classifier.\1"),
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
    renamed, unexpected = rename(rest, rules)
    last = count_parts(renamed, r"neck\.fusions\.(\d+)\.") - 1
    unused = f"neck.fusions.{last}.lateral."
    tensors = {n: v for n, v in renamed.items() if not n.startswith(unused)}
    for name, value in encoder.tensors.items():
        if not re.match(r"(norm|head|fc_norm|pre_logits)\.", name):  # behind the last block
            tensors[f"encoder.vit.{name}"] = value
    unexpected += [n for n in encoder.unexpected if not n.startswith("pooler.")]
    return Translation(dialect, tensors, whole=True, unexpected=unexpected)


def dpt_arguments(found: Translation) -> dict[str, Any]:
    """Keyword arguments of `SETR` for a DPT, except the encoder's."""
    t, port = found.tensors, found.dialect == "mmseg"
    count = count_parts(t, r"neck\.reassemble\.(\d+)\.")
    aux = {"num_convs": 1, "concat_input": False}
    if "aux_heads.0.classifier.weight" in t:
        aux["channels"] = t["aux_heads.0.classifier.weight"].shape[1]
    return {
        "pos_interp": "bicubic_plain" if port else "bilinear",
        "prefix_tokens": "keep",
        "neck_args": {
            "channels": len(t["neck.reassemble.0.conv.weight"]),
            "reassembled": tuple(
                len(t[f"neck.reassemble.{i}.project.weight"]) for i in range(count)
            ),
        },
        "decoder_args": {
            "channels": t["decoder.classifier.weight"].shape[1],
            "final_scale": 1 if port else 2,
        },
        "aux_args": aux,
    }


_NORM_EPS = {"mmseg": 1e-5, "dpt-transformers": 1e-12, "dpt": 1e-6}
"""Epsilon of the layer norms in DPT's encoder, where nothing is recorded."""


def dpt_encoder(found: Translation, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of DPT's encoder: the readout, and the epsilon of its norms."""
    readout = str(recorded(meta, "readout_type") or "ignore")
    if "neck.reassemble.0.readout.0.weight" in found.tensors:
        readout = "concat"
    return {"readout": readout, "norm_eps": meta.get("norm_eps") or _NORM_EPS[found.dialect]}
