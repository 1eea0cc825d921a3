"""The named models: the paper's models and baselines as keyword arguments of `SETR`.

A name gives decoder and size, such as `setr_pup_base`; `segmenter_base` has Segmenter's decoder,
`dpt_base` DPT's, `upernet_base` UPerNet's, `eomt_base` is EoMT, and `linear_base` is a linear probe
for comparison. Any timm ViT can replace the encoder of a named model. The paper's models have heads
of 256 channels, and auxiliary heads at fixed blocks.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from setr.arguments.choices import Neck
from setr.arguments.typed import checked
from setr.errors import UsageError, similar
from setr.layers.timm_vit import encoder_depth, has_class_token

DecoderName = Literal[
    "naive", "pup", "mla", "segmenter", "eomt", "dpt", "upernet", "linear", "fcn", "semantic_fpn"
]
_LAST_BLOCK: tuple[DecoderName, ...] = ("segmenter", "eomt", "linear")
"""Decoders that read only the last block by default and have no auxiliary heads."""
_PYRAMIDS: tuple[DecoderName, ...] = ("dpt", "upernet")
"""Decoders that make maps of several sizes from the taps."""


class _Size(NamedTuple):
    """An encoder size: timm name, depth, timm keywords, and channels of the heads' convolutions."""

    encoder: str
    depth: int
    args: dict[str, Any]
    channels: int = 256


_SIZES = {
    # for the demo: small images, 8 px patches, trained from random weights in minutes
    "nano": _Size(
        "vit_tiny_patch16_224",
        6,
        {"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4},
        channels=64,
    ),
    "tiny": _Size("vit_tiny_patch16_384", 12, {}),
    "small": _Size("vit_small_patch16_384", 12, {}),
    "base": _Size("vit_base_patch16_384", 12, {}),
    "large": _Size("vit_large_patch16_384", 24, {}),
}
_EOMT_ENCODERS = {size: f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large")}
"""EoMT's encoders, which get patches of 16 pixels."""
_TRANSFORMERS: dict[str, tuple[DecoderName, str, dict[str, Any]]] = {
    f"setr_{decoder}_{size}": (decoder, size, {})
    for decoder in ("naive", "pup", "mla")
    for size in _SIZES
}
_TRANSFORMERS |= {
    f"{decoder}_{size}": (decoder, size, {})
    for decoder in (*_LAST_BLOCK, *_PYRAMIDS)
    for size in _SIZES
}
_TRANSFORMERS["hybrid_base"] = ("naive", "base", {"resnet": "resnet50c"})
_BASELINES: dict[str, dict[str, Any]] = {
    "fcn_r101": {
        "encoder": "resnet101c",
        "decoder": "fcn",
        "taps": (3, 4),
        "aux_taps": (3,),
        "encoder_args": {"output_stride": 8},
        "aux_args": {"channels": 256, "num_convs": 1, "concat_input": False},
    },
    "semantic_fpn_r101": {
        "encoder": "resnet101c",
        "decoder": "semantic_fpn",
        "taps": (1, 2, 3, 4),
        "encoder_args": {"output_stride": 32},
    },
}


def query_blocks(depth: int) -> int:
    """Number of blocks that process EoMT's queries: its authors' for ViT-S, B, L and g."""
    return {12: 3, 24: 4, 40: 5}.get(depth, max(1, depth // 4))


def default_taps(decoder: str, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks read by the heads: (taps, aux_taps), counted from 1.

    Depth 24 follows section 4.1 ("Auxiliary loss"), depth 12 the authors' configurations (auxiliary
    heads of Naive at 3, 6, 9, of PUP at 5, 8, 10, 12; MLA, DPT and UPerNet 3, 6, 9, 12). For other
    depths, taps are evenly spaced. Segmenter, EoMT and the linear probe read the last block and
    have no auxiliary heads; UPerNet has one on the last tap (with the neck `feature2pyramid` on the
    last but one).
    """
    if decoder in _LAST_BLOCK:
        return (depth,), ()
    quarters = tuple(sorted({max(1, round(depth * i / 4)) for i in (1, 2, 3, 4)}))
    late = {24: (10, 15, 20, 24), 12: (5, 8, 10, 12)}.get(depth, quarters)
    taps = quarters
    if decoder == "pup" or (decoder == "naive" and depth == 24):
        taps = late
    return taps, _aux_taps(decoder, taps)


def _aux_taps(decoder: str, taps: tuple[int, ...]) -> tuple[int, ...]:
    """Every tap has an auxiliary head, except the last of Naive, which only the decoder reads.

    DPT has one, on the map of the last fusion but one (its section 4.2).
    """
    if decoder in _LAST_BLOCK:
        return ()
    if decoder == "dpt":
        return taps[1:2]
    if decoder == "upernet":
        return taps[-1:]
    return taps[:-1] if decoder == "naive" else taps


@checked
def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that `create_model` can build.

    Args:
        pattern: a shell pattern that they match, such as `*pup*`.
    """
    return fnmatch.filter([*_TRANSFORMERS, *_BASELINES], pattern)


def is_convolutional(name: str) -> bool:
    """Whether a model is one of the convolutional baselines, without position embeddings."""
    return name in _BASELINES


def name_with(decoder: DecoderName, like: str) -> str:
    """Name of the model with this decoder and, where both are transformers, the size of `like`."""
    size = _TRANSFORMERS[like][1] if like in _TRANSFORMERS else "base"
    plain = [
        n for n, (d, s, more) in _TRANSFORMERS.items() if (d, s) == (decoder, size) and not more
    ]
    return next(iter(plain), None) or next(
        n for n, settings in _BASELINES.items() if settings["decoder"] == decoder
    )


def model_settings(
    name: str,
    *,
    encoder: str | None = None,
    channels: int | None = None,
    taps: tuple[int, ...] | None = None,
    align_corners: bool = True,
    neck: Neck = "ln_mln",
    encoder_args: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `SETR` for a named model.

    Args:
        name: one of `list_models()`.
        encoder: timm name of an encoder to use instead of the default one.
        channels: channels of the heads' convolutions, 256 in the paper, or of Segmenter's decoder.
            UPerNet has 512 by default, and half of its number in the auxiliary head, but at most
            256.
        taps: blocks that the heads read, counted from 1; the auxiliary heads read them, too.
        align_corners: option of MLA's and DPT's upsampling; True as in the authors' code.
        neck: UPerNet's neck, see `ModelConfig.neck`.
        encoder_args: further keyword arguments of the encoder; `depth` changes the default taps.

    Raises:
        SetrError: unknown name (similar names are listed), or an option the model does not have.
    """
    if name in _TRANSFORMERS:
        settings = _transformer_settings(name, encoder, channels, encoder_args)
        if taps:
            settings["taps"], settings["aux_taps"] = taps, _aux_taps(settings["decoder"], taps)
    elif name in _BASELINES:
        if channels or taps:
            raise UsageError(f"channels, taps: {name} has a fixed width and stages; leave them out")
        settings = dict(_BASELINES[name])
    else:
        if re.search(r"patch\d+", name.lower()):
            raise UsageError(
                f"model '{name}' is the name of an encoder; give it as encoder (--model.encoder) "
                "beside the name of a model, such as setr_mla_base (`setr models` lists all)"
            )
        near = similar(name, list_models())
        raise UsageError(f"model '{name}' is unknown{near} (`setr models` lists all)")
    if settings["decoder"] == "mla" and not align_corners:
        settings["decoder_args"]["align_corners"] = False
    if settings["decoder"] == "dpt" and not align_corners:
        settings["neck_args"]["align_corners"] = False
    if settings["decoder"] == "upernet":
        if neck == "feature2pyramid":
            settings["neck_args"] |= {"feature2pyramid": True}
            settings["aux_taps"] = settings["taps"][-2:-1]
        else:
            settings["neck_args"] |= {"pyramid": neck != "none", "norm_last": neck == "ln_mln"}
    elif neck != "ln_mln":
        raise UsageError(f"neck {neck}: {name} has no such neck; leave it out")
    if encoder:
        settings["encoder"] = encoder
    settings["encoder_args"] = {**settings["encoder_args"], **(encoder_args or {})}
    return settings


def _transformer_settings(
    name: str, encoder: str | None, channels: int | None, encoder_args: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Keyword arguments of `SETR` for a named transformer."""
    decoder, size_name, extra = _TRANSFORMERS[name]
    size = _SIZES[size_name]
    depth = (encoder_args or {}).get("depth") or (encoder_depth(encoder) if encoder else size.depth)
    if not isinstance(depth, int):
        raise UsageError(f"encoder_args: depth {depth!r}: give a whole number")
    taps, aux_taps = default_taps(decoder, depth)
    if decoder in ("linear", "eomt") and channels is not None:
        raise UsageError(
            f"channels {channels}: {name} has a fixed width; give None (--model.channels None)"
        )
    least = 2 if decoder in ("mla", "upernet") else 1  # whose streams or auxiliary head have half
    if channels is not None and channels < least:
        raise UsageError(f"channels {channels}: give {name} at least {least}")
    width = channels or size.channels
    heads: dict[str, Any] = {"decoder_args": {"channels": width}, "aux_args": {"channels": width}}
    if decoder == "mla":
        heads = {"neck_args": {"channels": width}, "decoder_args": {"stream_channels": width // 2}}
    elif decoder in _LAST_BLOCK:
        heads = {"decoder_args": {"channels": channels} if channels else {}}
    elif decoder == "pup":
        heads["aux_args"] = {"channels": width, "kernel_size": 3, "final_scale": 4}
    elif decoder == "upernet":
        width = channels or (size.channels if size_name == "nano" else 512)
        heads = {
            "neck_args": {"channels": width},
            "decoder_args": {},
            "aux_args": {"channels": min(256, width // 2), "num_convs": 1, "concat_input": False},
        }
    own, own_args = size.encoder, {} if encoder else dict(size.args)
    if decoder == "eomt":
        own = _EOMT_ENCODERS.get(size_name, own)
        if own != size.encoder and not encoder:
            own_args["patch_size"] = 16
        own_args["query_blocks"] = query_blocks(depth)
    elif decoder == "dpt":
        heads["neck_args"] = {"channels": width}
        heads["aux_args"] |= {"num_convs": 1, "concat_input": False}
        if not encoder or has_class_token(encoder):
            own_args["readout"] = "concat"
    return {
        "encoder": own,
        "decoder": decoder,
        "taps": taps,
        "aux_taps": aux_taps,
        "encoder_args": own_args,
        **heads,
        **extra,
    }
