"""Infer the architecture of a foreign whole checkpoint from the shapes of its tensors.

Keyword arguments give what shapes cannot show: the number of attention heads (by default one per 64
channels), the taps if the number of auxiliary heads is unusual, and the patch grid if it is not
square. Training checkpoints of mmengine also hold their configuration as text; the numbers of heads
and taps are then searched for in this text, which is never executed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from setr.catalog import default_taps
from setr.errors import USAGE, SetrError
from setr.weight_files.eomt import HEAD_WIDTH, eomt_architecture
from setr.weight_files.naming import Tensors, Translation
from setr.weight_files.relative_bias import TABLE, relative_encoder, relative_taps
from setr.weight_files.upernet import MARKER, upernet_arguments

_KNOWN_SIZES = {(768, 12, 12): "vit_base_patch16_384", (1024, 24, 16): "vit_large_patch16_384"}


def read_architecture(
    found: Translation,
    meta: Mapping[str, Any],
    *,
    source: str,
    num_heads: int | None = None,
    taps: tuple[int, ...] | None = None,
    aux_taps: tuple[int, ...] | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `SETR` for a whole foreign model.

    Args:
        found: the checkpoint, of one of the dialects `WHOLE`.
        meta: values stored beside the tensors.
        source: name of the file for error messages.
        num_heads: number of attention heads; by default as recorded in `meta`, else one per 64
            channels.
        taps: blocks read by the heads, counted from 1.
        aux_taps: taps with an auxiliary head, in the file's order.
        img_size: (height, width) in pixels, if the patch grid is not square.

    Raises:
        SetrError: tensors that contradict each other, or a keyword argument that is needed.
    """
    t = found.tensors
    if found.dialect == "eomt":
        return eomt_architecture(
            found,
            num_heads=num_heads or meta.get("num_heads"),
            img_size=img_size,
            side=meta.get("side"),
            norm_eps=meta.get("norm_eps"),
        )
    table = t.get(f"encoder.vit.blocks.0.attn.{TABLE}")
    try:
        width = t[f"encoder.vit.{'pos_embed' if table is None else 'cls_token'}"].shape[-1]
        channels, _, patch = t["encoder.vit.patch_embed.proj.weight"].shape[1:]
        tokens = t.get("decoder.class_tokens")
        num_classes = len(t["decoder.classifier.weight"]) if tokens is None else tokens.shape[1]
        hidden = t["encoder.vit.blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise SetrError(
            f"{source}: {error.args[0]} is missing; the checkpoint is incomplete"
        ) from None
    depth = _count(t, r"encoder\.vit\.blocks\.(\d+)\.")
    num_aux = _count(t, r"aux_heads\.(\d+)\.")
    if table is not None:
        num_heads = table.shape[1]
    num_heads = num_heads or recorded(meta, "num_heads") or max(1, width // HEAD_WIDTH)
    if width % num_heads:
        raise SetrError(
            f"{source}: {width} channels cannot be split into {num_heads} heads; give num_heads=",
            code=USAGE,
        )
    decoder = _decoder_kind(t, source)
    if taps is None and (indices := recorded(meta, "out_indices")):
        taps = tuple(i + 1 for i in ([indices] if isinstance(indices, int) else indices))
    default = default_taps(decoder, depth)[0]
    pyramid = "neck.levels.1.up.weight" in t
    if pyramid:
        # transformers reads two blocks before those of BEiT's code (docs/parity.md)
        shift = 2 if found.dialect == "beit-transformers" else 0
        taps = taps or tuple(tap - shift for tap in relative_taps(depth))
    if decoder == "upernet" and aux_taps is None and num_aux:
        aux_taps = (taps or default)[-2:-1] if pyramid else (taps or default)[-1:]
    taps, aux_taps = _choose_taps(default, num_aux, taps, aux_taps, source)
    if decoder == "mla" and found.dialect == "mmseg":
        aux_taps = aux_taps[::-1]  # mmsegmentation's levels run from deep to shallow
    encoder = _KNOWN_SIZES.get((width, depth, num_heads))
    shape = {"embed_dim": width, "depth": depth, "num_heads": num_heads, "patch_size": patch,
             "mlp_ratio": hidden / width,
             "qkv_bias": "encoder.vit.blocks.0.attn.qkv.bias" in t}  # fmt: skip
    if encoder and table is None and (patch, hidden, shape["qkv_bias"]) == (16, 4 * width, True):
        shape = {}  # timm's defaults
    if table is not None:
        encoder, more = "beit_base_patch16_224", relative_encoder(t)
        shape = {key: value for key, value in shape.items() if key != "qkv_bias"} | more
    if found.dialect == "beit-transformers":
        shape["norm_eps"] = meta.get("norm_eps") or 1e-12
    if channels != 3:
        shape["in_chans"] = channels
    if found.dialect == "segmenter":
        shape["norm_eps"] = 1e-5
    if decoder == "dpt":
        shape |= _dpt_encoder(found, meta)
    if "encoder.vit.dist_token" in t:
        encoder = "deit_base_distilled_patch16_384"
    if decoder == "upernet":
        arguments = upernet_arguments(t, source)
    else:
        arguments = _dialect_arguments(found, decoder, num_aux)
    if decoder == "segmenter":  # both code bases use the encoder's number of heads
        arguments["decoder_args"]["num_heads"] = num_heads
    return {
        "encoder": encoder or "vit_base_patch16_384",
        "encoder_args": shape,
        "decoder": decoder,
        "num_classes": num_classes,
        "taps": taps,
        "aux_taps": aux_taps,
        "img_size": img_size or _square_size(t, patch, source),
        **arguments,
    }


def dialect_options(found: Translation, source: str) -> dict[str, Any]:
    """`function_options` of a whole foreign model; EoMT has one implementation."""
    if found.dialect == "eomt":
        return {}
    decoder = _decoder_kind(found.tensors, source)
    num_aux = _count(found.tensors, r"aux_heads\.(\d+)\.")
    if decoder == "upernet":
        arguments = upernet_arguments(found.tensors, source)
    else:
        arguments = _dialect_arguments(found, decoder, num_aux)
    return function_options({"decoder": decoder, "aux_taps": range(num_aux), **arguments})


def function_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options in which the public implementations differ, with their values."""
    decoder, aux = arguments["decoder_args"] or {}, arguments["aux_args"] or {}
    options = {key: arguments[key] for key in ("pos_interp", "prefix_tokens")}
    if arguments["decoder"] == "mla":
        options["align_corners"] = decoder.get("align_corners", True)
    if arguments["decoder"] in ("naive", "dpt"):
        options["final_scale"] = decoder.get("final_scale", 1)
    if arguments["decoder"] in ("naive", "pup") and arguments["aux_taps"]:
        options["auxiliary final_scale"] = aux.get("final_scale", 1)
    return options


def _count(tensors: Tensors, pattern: str) -> int:
    found = {int(m[1]) for name in tensors if (m := re.match(pattern, name))}
    return max(found) + 1 if found else 0


def recorded(meta: Mapping[str, Any], key: str) -> Any:
    """A number, tuple or list stored in a checkpoint, also in its configuration text, or None."""
    if key in meta:
        return meta[key]
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str):
        return None
    found = re.search(rf"\b{key}\s*=\s*(\d+|[(\[][\d,\s]+[)\]])", text)
    return ast.literal_eval(found[1]) if found else None


def _decoder_kind(t: Tensors, source: str) -> str:
    if "neck.reassemble.0.conv.weight" in t:
        return "dpt"
    if MARKER in t:
        return "upernet"
    if any(name.startswith("neck.") for name in t):
        return "mla"
    if "decoder.class_tokens" in t:
        return "segmenter"
    if "decoder.batch_norm.weight" in t:
        return "linear"
    first = t.get("decoder.convs.0.0.weight")
    convs = _count(t, r"decoder\.convs\.(\d+)\.")
    if first is None:
        raise SetrError(f"{source}: its decoder is not one of SETR-Naive, PUP and MLA")
    if first.shape[-1] == 1 and convs == 1:
        return "naive"
    if first.shape[-1] == 3 and convs > 1:
        return "pup"
    raise SetrError(
        f"{source}: a decoder of {convs} convolutions {tuple(first.shape[-2:])} is not one of "
        "SETR-Naive, PUP and MLA"
    )


def _choose_taps(
    default: tuple[int, ...],
    num_aux: int,
    taps: tuple[int, ...] | None,
    aux_taps: tuple[int, ...] | None,
    source: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The taps that were given, else the default ones; the first ones have auxiliary heads."""
    taps = tuple(taps) if taps else default
    aux_taps = tuple(aux_taps) if aux_taps is not None else taps[:num_aux]
    if len(aux_taps) != num_aux:
        raise SetrError(
            f"{source}: has {num_aux} auxiliary heads, but {len(aux_taps)} of the blocks {taps} "
            "would have one; give taps= and aux_taps=",
            code=USAGE,
        )
    return taps, aux_taps


def _square_size(t: Tensors, patch: int, source: str) -> int:
    table = t.get(f"encoder.vit.blocks.0.attn.{TABLE}")
    if table is not None:
        side = (round((len(table) - 3) ** 0.5) + 1) // 2
        if (2 * side - 1) ** 2 + 3 != len(table):
            raise SetrError(
                f"{source}: position biases of {len(table)} offsets do not belong to a square "
                "grid; give img_size=(height, width)",
                code=USAGE,
            )
        return side * patch
    names = ("encoder.vit.cls_token", "encoder.vit.dist_token")
    prefix = sum(name in t for name in names)
    count = t["encoder.vit.pos_embed"].shape[1] - prefix
    side = round(count**0.5)
    if side * side != count:
        raise SetrError(
            f"{source}: {count} position embeddings do not form a square grid; give "
            "img_size=(height, width)",
            code=USAGE,
        )
    return side * patch


def _dialect_arguments(found: Translation, decoder: str, num_aux: int) -> dict[str, Any]:
    """Channels from shapes; what shapes cannot show from the dialect (see docs/parity.md)."""
    t, port = found.tensors, found.dialect == "mmseg"
    if decoder in ("segmenter", "linear"):
        return {
            "pos_interp": "bicubic_plain" if port else "bilinear",
            "prefix_tokens": "keep",
            "decoder_args": {} if decoder == "linear" else _mask_transformer(t, port),
            "aux_args": {},
        }
    if decoder == "dpt":
        return _dpt_arguments(found)
    classifier = t["decoder.classifier.weight"]
    if decoder == "mla":
        return {
            "pos_interp": "bilinear",
            "prefix_tokens": "drop",
            "neck_args": {"channels": t["neck.reduce.0.0.weight"].shape[0]},
            "decoder_args": {
                "stream_channels": t["decoder.streams.0.0.0.weight"].shape[0],
                "classifier_kernel": classifier.shape[-1],
                "align_corners": not port,
            },
            "aux_args": {"bias": "aux_heads.0.classifier.bias" in t},
        }
    main: dict[str, Any] = {"channels": classifier.shape[1]}
    if decoder == "pup":
        main["num_convs"] = _count(t, r"decoder\.convs\.(\d+)\.")
        main["final_scale"] = 2 if port else 1
    else:
        main["final_scale"] = 4 if port else 1
    aux: dict[str, Any] = {}
    if num_aux:
        kernel = t["aux_heads.0.convs.0.0.weight"].shape[-1]
        aux = {
            "channels": t["aux_heads.0.classifier.weight"].shape[1],
            "num_convs": _count(t, r"aux_heads\.0\.convs\.(\d+)\."),
            "kernel_size": kernel,
            "scale": 4 if port else 1,
            "final_scale": 4 if port or kernel == 3 else 1,
        }
    return {
        "pos_interp": "bilinear",
        "prefix_tokens": "keep",
        "decoder_args": main,
        "aux_args": aux,
    }


def _mask_transformer(t: Tensors, port: bool) -> dict[str, Any]:
    """Keyword arguments of `MaskTransformer`."""
    hidden, width = t["decoder.blocks.0.mlp.fc1.weight"].shape
    return {
        "num_layers": _count(t, r"decoder\.blocks\.(\d+)\."),
        "channels": width,
        "mlp_ratio": hidden / width,
        "encoder_eps": 1e-6 if port else 1e-5,
    }


def _dpt_arguments(found: Translation) -> dict[str, Any]:
    """Keyword arguments of `SETR` for a DPT, except the encoder's."""
    t, port = found.tensors, found.dialect == "mmseg"
    count = _count(t, r"neck\.reassemble\.(\d+)\.")
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


def _dpt_encoder(found: Translation, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of DPT's encoder: the readout, and the epsilon of its norms."""
    readout = str(meta.get("readout_type") or _recorded_word(meta, "readout_type") or "ignore")
    if "neck.reassemble.0.readout.0.weight" in found.tensors:
        readout = "concat"
    return {"readout": readout, "norm_eps": meta.get("norm_eps") or _NORM_EPS[found.dialect]}


def _recorded_word(meta: Mapping[str, Any], key: str) -> str | None:
    """A quoted word from the configuration text in a checkpoint; None if absent."""
    text = meta.get("cfg") or meta.get("config")
    found = re.search(rf"\b{key}\s*=\s*['\"](\w+)['\"]", text) if isinstance(text, str) else None
    return found[1] if found else None
