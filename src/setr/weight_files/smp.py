"""Models of segmentation_models.pytorch: its DPT on a ViT of timm, and what is said of the others.

A folder of its `save_pretrained` has the arguments of the model in `config.json`. A file of tensors
alone shows all of them but the encoder's name; a plain ViT is then known by its width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from setr.errors import SetrError, UsageError
from setr.layers.positions import num_pos_prefix
from setr.layers.timm_vit import create_vit
from setr.weight_files.dpt_layouts import READOUT, behind_blocks, dpt_arguments
from setr.weight_files.naming import Tensors, Translation, count_parts, num_blocks
from setr.weight_files.stem import flatten_positions
from setr.weight_files.transformers_files import read_settings

_PREFIX = "tu-"
"""What stands before timm's names in `encoder_name`."""
_OTHERS = {
    "UnetPlusPlus": r"decoder\.blocks\.x_0_0\.",
    "MAnet": r"decoder\.center\.top_conv\.",
    "Linknet": r"decoder\.blocks\.0\.block\.",
    "FPN": r"decoder\.seg_blocks\.",
    "PSPNet": r"decoder\.psp\.",
    "DeepLabV3": r"decoder\.aspp\.convs\.",
    "DeepLabV3Plus": r"decoder\.aspp\.0\.",
    "PAN": r"decoder\.fpa\.",
    "UPerNet": r"decoder\.feature_norms\.",
    "Segformer": r"decoder\.mlp_stage\.",
    "Unet": r"decoder\.blocks\.0\.conv1\.",
}
"""Its other models, and how the names of some tensors begin; the first that fits."""
_MODEL = frozenset(
    {"activation", "aux_params", "classes", "in_channels", "encoder_name", "encoder_depth",
     "encoder_weights", "encoder_output_indices", "decoder_readout", "decoder_fusion_channels",
     "decoder_intermediate_channels"}
)  # fmt: skip
"""Arguments of the model; all others are timm's."""
_UNUSED = r"_|pretrained|dynamic_img|strict_img|img_size$|num_classes$|.*drop.*_rate$|cache_dir$"
"""Arguments that a model here does without: of weights, sizes and training."""
_PLAIN = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
}
"""Plain ViTs of timm by their width."""
_TRANSFORMS = "albumentations_config_eval.json"
_BYTE = 255


def require_dpt(tensors: Tensors, source: str) -> None:
    """Raise `SetrError` for a model of segmentation_models.pytorch that is no DPT."""
    if "segmentation_head.0.weight" not in tensors:
        return
    for model, start in _OTHERS.items():
        if any(re.match(start, name) for name in tensors):
            raise SetrError(
                f"{source}: is a {model} of segmentation_models.pytorch, not a model on a plain "
                "ViT; of its models only DPT is read. Predict there and compare by `setr score`, "
                "or train a model of this toolkit on the same data (`setr init-data`, `setr auto`)"
            )


def smp_settings(folder: Path) -> dict[str, Any]:
    """Arguments of the model in a folder of `save_pretrained`, by the names used for others.

    Returns:
        Those that are given, of: `encoder`, `encoder_args`, `img_size`, `out_indices` (of blocks,
        from 0), `readout_type`, `activation` (of several classes), `is_dynamic` (whether images had
        any size), and `mean` and `std` of the transforms that its pages save beside the model.
        Empty for a folder of another kind.

    Raises:
        SetrError: a file that is not JSON.
        one of `BROKEN`: a setting of another type.
    """
    config = read_settings(folder / "config.json")
    if "_model_class" not in config:
        return {}
    given = {name: value for name, value in config.items() if value is not None}
    size = given.get("img_size")
    found = {
        "encoder": given["encoder_name"].removeprefix(_PREFIX),
        "encoder_args": {
            name: value
            for name, value in given.items()
            if name not in _MODEL and not re.match(_UNUSED, name)
        },
        "img_size": tuple(size) if isinstance(size, list) else size,
        "out_indices": given.get("encoder_output_indices"),
        "readout_type": given.get("decoder_readout"),
        "activation": given.get("activation") if given.get("classes") != 1 else None,
        "is_dynamic": bool(given.get("dynamic_img_size")),
    }
    found |= _normalisation(read_settings(folder / _TRANSFORMS))
    return {name: value for name, value in found.items() if value is not None}


def _normalisation(values: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation in Albumentations' description of transforms."""
    steps = values.get("transform", {}).get("transforms", [])
    for step in steps:
        if step.get("__class_fullname__") == "Normalize":
            scale = float(step.get("max_pixel_value") or _BYTE) / _BYTE
            return {name: [float(v) * scale for v in step[name]] for name in ("mean", "std")}
    return {}


def smp_architecture(
    found: Translation,
    meta: Mapping[str, Any],
    *,
    source: str,
    num_heads: int | None = None,
    taps: tuple[int, ...] | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `SETR`; those of this function are as of `read_architecture`.

    Raises:
        SetrError: an encoder that the tensors do not fit, or that they do not show.
    """
    t = found.tensors
    patches = t["encoder.vit.patch_embed.proj.weight"]
    patch, depth = patches.shape[-1], num_blocks(t)
    maps = count_parts(t, r"neck\.reassemble\.(\d+)\.")
    if patch & (patch - 1) or patch < len("4x"):
        raise SetrError(
            f"{source}: has patches of {patch} pixels, at which the maps of "
            "segmentation_models.pytorch's DPT do not fit each other, so it never gave a result"
        )
    name, arguments, vit = _encoder(found, meta, source, num_heads)
    if getattr(vit.pos_embed, "ndim", None) == len("1NC"):
        flatten_positions(t)  # SAM's
    indices = meta.get("out_indices")
    if not taps:
        taps = tuple(int(depth / maps * (i + 1)) for i in range(maps))
        taps = tuple(sorted(i % depth + 1 for i in indices)) if indices else taps
    return {
        "encoder": name,
        "encoder_args": {**arguments, "readout": _readout(t, meta, vit)},
        "decoder": "dpt",
        "num_classes": len(t["decoder.classifier.weight"]),
        "taps": taps,
        "aux_taps": (),
        "img_size": img_size or meta.get("img_size") or _usual_size(t, vit, patch, source),
        **dpt_arguments(found),
    }


def _encoder(
    found: Translation, meta: Mapping[str, Any], source: str, num_heads: int | None
) -> tuple[str, dict[str, Any], Any]:
    """Timm name of the encoder, the arguments in which it differs, and it without values.

    Raises:
        SetrError: its tensors are called otherwise than those of the file.
    """
    t = found.tensors
    given = {n.removeprefix("encoder.vit.") for n in t if n.startswith("encoder.vit.")}
    patches = t["encoder.vit.patch_embed.proj.weight"]
    arguments = dict(meta.get("encoder_args") or {})
    if patches.shape[1] != len("rgb"):
        arguments["in_chans"] = patches.shape[1]
    if num_heads:
        arguments["num_heads"] = num_heads
    name = meta.get("encoder") or _PLAIN.get(len(patches), "")
    if "dist_token" in given and not meta.get("encoder"):
        name = name.replace("vit_", "deit_").replace("_patch", "_distilled_patch")
    ask = (
        "give the name that the model was made with, without `tu-`: --encoder NAME, encoder= in "
        "Python"
    )
    if not name:
        raise UsageError(f"{source}: does not say which encoder of {len(patches)} channels; {ask}")
    with torch.device("meta"):
        vit = create_vit(name, img_size=None, **arguments)
        if patches.shape[-1] != vit.patch_embed.patch_size[-1]:
            arguments["patch_size"] = patches.shape[-1]
            vit = create_vit(name, img_size=None, **arguments)
    if vit.embed_dim != len(patches):
        raise UsageError(
            f"{source}: its encoder has {len(patches)} channels, timm's {name} {vit.embed_dim}; "
            f"{ask}"
        )
    own = {n for n in vit.state_dict() if not behind_blocks(n)}
    if odd := sorted(own ^ given):
        has = "has" if odd[0] in given else "lacks"
        raise UsageError(f"{source}: {has} {odd[0]}, unlike timm's {name}; {ask}")
    return name, arguments, vit


def _readout(t: Tensors, meta: Mapping[str, Any], vit: Any) -> str:
    """The encoder's option for what becomes of its prefix tokens."""
    if (layer := t.get(READOUT)) is not None:
        return "ignore" if layer.shape[0] == layer.shape[1] else "concat"
    if meta.get("readout_type") != "add" or not vit.num_prefix_tokens:
        return "ignore"
    return "add" if vit.num_prefix_tokens == 1 else "mean"


def _usual_size(t: Tensors, vit: Any, patch: int, source: str) -> int | tuple[int, int] | None:
    """Size in pixels of the images that the positions are for, else timm's for the encoder."""
    positions = t.get("encoder.vit.pos_embed")
    if positions is None or positions.ndim != len("1NC"):
        return vit.patch_embed.img_size
    count = positions.shape[1] - num_pos_prefix(vit)
    if math.isqrt(count) ** 2 != count:
        raise UsageError(
            f"{source}: {count} position embeddings do not form a square grid; give "
            "img_size=(height, width)"
        )
    return math.isqrt(count) * patch


def smp_assumptions(
    found: Translation, meta: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[str]:
    """What a model computes otherwise there, and what is assumed as nothing records it."""
    said = []
    if "mean" not in meta:
        said.append(f"mean and std, which are not recorded, as of timm's {arguments['encoder']}")
    if meta.get("activation") == "sigmoid":
        said.append("a sigmoid of each class there, here a softmax of all")
    if READOUT not in found.tensors and "readout_type" not in meta:
        said.append("prefix tokens, for which nothing is recorded, taken to be ignored")
    return said
