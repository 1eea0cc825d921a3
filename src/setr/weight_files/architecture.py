"""Infer the architecture of a foreign whole checkpoint from the shapes of its tensors.

Keyword arguments give what shapes cannot show: the number of attention heads (by default one per 64
channels), the taps if the number of auxiliary heads is unusual, and the patch grid if it is not
square. Training checkpoints of mmengine also hold their configuration as text; the numbers of heads
and taps are then searched for in this text, which is never executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr.catalog import default_taps
from setr.errors import SetrError, UsageError
from setr.weight_files.dpt_layouts import dpt_arguments, dpt_encoder
from setr.weight_files.eomt import HEAD_WIDTH, eomt_architecture
from setr.weight_files.lightly_layouts import linear_architecture
from setr.weight_files.naming import (
    LIGHTLY_LINEAR,
    SMP,
    Tensors,
    Translation,
    count_parts,
    num_blocks,
    recorded,
)
from setr.weight_files.relative_bias import TABLE, relative_encoder, relative_taps
from setr.weight_files.setr_layouts import mla_arguments, segmenter_arguments, upsampling_arguments
from setr.weight_files.smp import smp_architecture
from setr.weight_files.upernet import MARKER, upernet_arguments

_KNOWN_SIZES = {(768, 12, 12): "vit_base_patch16_384", (1024, 24, 16): "vit_large_patch16_384"}
_TABLE = f"encoder.vit.blocks.0.attn.{TABLE}"
_AUX_HEADS = r"aux_heads\.(\d+)\."
_MARKERS = {
    "dpt": "neck.reassemble.0.conv.weight",
    "upernet": MARKER,
    "mla": "neck.",
    "segmenter": "decoder.class_tokens",
    "linear": "decoder.batch_norm.weight",
}
"""How a name begins that shows the kind of decoder, in the order in which they are tried."""


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
    if found.dialect == SMP:
        return smp_architecture(
            found, meta, source=source, num_heads=num_heads, taps=taps, img_size=img_size
        )
    if found.dialect == "eomt":
        return eomt_architecture(found, meta, num_heads=num_heads, img_size=img_size)
    if found.dialect == LIGHTLY_LINEAR:
        return linear_architecture(found, meta, num_heads=num_heads, img_size=img_size)
    try:
        vit = _vit_shape(t)
        tokens = t.get("decoder.class_tokens")
        num_classes = len(t["decoder.classifier.weight"]) if tokens is None else tokens.shape[1]
    except KeyError as error:
        raise SetrError(
            f"{source}: {error.args[0]} is missing; the checkpoint is incomplete"
        ) from None
    width, depth = vit["embed_dim"], vit["depth"]
    table = t.get(_TABLE)
    if table is not None:
        num_heads = table.shape[1]
    num_heads = num_heads or recorded(meta, "num_heads") or max(1, width // HEAD_WIDTH)
    if width % num_heads:
        raise UsageError(
            f"{source}: {width} channels cannot be split into {num_heads} heads; give num_heads="
        )
    decoder = _decoder_kind(t, source)
    if taps is None and (indices := recorded(meta, "out_indices")):
        taps = tuple(i + 1 for i in ([indices] if isinstance(indices, int) else indices))
    taps, aux_taps = _choose_taps(found, decoder, depth, taps, aux_taps, source)
    encoder, encoder_args = _encoder(found, meta, vit, num_heads)
    if decoder == "dpt":
        encoder_args |= dpt_encoder(found, meta)
    arguments = _head_arguments(found, decoder, source)
    if decoder == "segmenter":  # both code bases use the encoder's number of heads
        arguments["decoder_args"]["num_heads"] = num_heads
    return {
        "encoder": encoder,
        "encoder_args": encoder_args,
        "decoder": decoder,
        "num_classes": num_classes,
        "taps": taps,
        "aux_taps": aux_taps,
        "img_size": img_size or _square_size(t, vit["patch_size"], source),
        **arguments,
    }


def _vit_shape(t: Tensors) -> dict[str, Any]:
    """What the shapes of a ViT's tensors show, as keyword arguments of `Encoder`.

    Raises:
        KeyError: a tensor is missing.
    """
    positions = "cls_token" if _TABLE in t else "pos_embed"
    width = t[f"encoder.vit.{positions}"].shape[-1]
    channels, _, patch = t["encoder.vit.patch_embed.proj.weight"].shape[1:]
    hidden = t["encoder.vit.blocks.0.mlp.fc1.weight"].shape[0]
    return {
        "embed_dim": width,
        "depth": num_blocks(t),
        "patch_size": patch,
        "mlp_ratio": hidden / width,
        "qkv_bias": "encoder.vit.blocks.0.attn.qkv.bias" in t,
        "in_chans": channels,
    }


def _encoder(
    found: Translation, meta: Mapping[str, Any], vit: dict[str, Any], num_heads: int
) -> tuple[str, dict[str, Any]]:
    """Timm name of the encoder, and the keyword arguments in which it differs from that model."""
    t = found.tensors
    shape = {**vit, "num_heads": num_heads}
    if shape["in_chans"] == 3:
        del shape["in_chans"]
    known = _KNOWN_SIZES.get((vit["embed_dim"], vit["depth"], num_heads))
    usual = (vit["patch_size"], vit["mlp_ratio"], vit["qkv_bias"]) == (16, 4, True)
    if _TABLE in t:
        del shape["qkv_bias"]
        known = "beit_base_patch16_224"
        shape |= relative_encoder(t)
    elif known and usual:
        shape = {key: value for key, value in shape.items() if key == "in_chans"}
    if "encoder.vit.dist_token" in t:
        known = "deit_base_distilled_patch16_384"
    if found.dialect == "beit-transformers":
        shape["norm_eps"] = meta.get("norm_eps") or 1e-12
    if found.dialect == "segmenter":
        shape["norm_eps"] = 1e-5
    return known or "vit_base_patch16_384", shape


def dialect_options(found: Translation, source: str) -> dict[str, Any]:
    """`function_options` of a whole foreign model; EoMT and linear heads have one."""
    if found.dialect in ("eomt", LIGHTLY_LINEAR):
        return {}
    decoder = _decoder_kind(found.tensors, source)
    num_aux = count_parts(found.tensors, _AUX_HEADS)
    arguments = _head_arguments(found, decoder, source)
    return function_options({"decoder": decoder, "aux_taps": range(num_aux), **arguments})


def function_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options in which the public implementations differ, with their values."""
    decoder, aux = arguments["decoder_args"] or {}, arguments["aux_args"] or {}
    options = {key: arguments[key] for key in ("pos_interp", "prefix_tokens")}
    if arguments["decoder"] == "mla":
        options["align_corners"] = decoder.get("align_corners", True)
    if arguments["decoder"] in ("naive", "dpt"):
        options["final_scale"] = decoder.get("final_scale", 1)
    if arguments["decoder"] == "dpt":
        neck = arguments["neck_args"] or {}
        options["deepest_lateral"] = neck.get("deepest_lateral", False)
    if arguments["decoder"] in ("naive", "pup") and arguments["aux_taps"]:
        options["auxiliary final_scale"] = aux.get("final_scale", 1)
    return options


def _decoder_kind(t: Tensors, source: str) -> str:
    for kind, marker in _MARKERS.items():
        if any(name.startswith(marker) for name in t):
            return kind
    first = t.get("decoder.convs.0.0.weight")
    convs = count_parts(t, r"decoder\.convs\.(\d+)\.")
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
    found: Translation,
    decoder: str,
    depth: int,
    taps: tuple[int, ...] | None,
    aux_taps: tuple[int, ...] | None,
    source: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The taps that were given, else the usual ones; the first ones have auxiliary heads."""
    num_aux = count_parts(found.tensors, _AUX_HEADS)
    pyramid = "neck.levels.1.up.weight" in found.tensors
    if not taps and pyramid:
        # transformers reads two blocks before those of BEiT's code (docs/parity.md)
        shift = 2 if found.dialect == "beit-transformers" else 0
        taps = tuple(tap - shift for tap in relative_taps(depth))
    taps = tuple(taps or default_taps(decoder, depth)[0])
    if aux_taps is None:
        aux_taps = taps[:num_aux]
        if decoder == "upernet" and num_aux:
            aux_taps = taps[-2:-1] if pyramid else taps[-1:]
    if len(aux_taps) != num_aux:
        raise UsageError(
            f"{source}: has {num_aux} auxiliary heads, but {len(aux_taps)} of the blocks {taps} "
            "would have one; give taps= and aux_taps="
        )
    if decoder == "mla" and found.dialect == "mmseg":
        aux_taps = aux_taps[::-1]  # mmsegmentation's levels run from deep to shallow
    return taps, tuple(aux_taps)


def _square_size(t: Tensors, patch: int, source: str) -> int:
    table = t.get(_TABLE)
    if table is not None:
        side = (round((len(table) - 3) ** 0.5) + 1) // 2
        if (2 * side - 1) ** 2 + 3 != len(table):
            raise UsageError(
                f"{source}: position biases of {len(table)} offsets do not belong to a square "
                "grid; give img_size=(height, width)"
            )
        return side * patch
    names = ("encoder.vit.cls_token", "encoder.vit.dist_token")
    prefix = sum(name in t for name in names)
    count = t["encoder.vit.pos_embed"].shape[1] - prefix
    side = round(count**0.5)
    if side * side != count:
        raise UsageError(
            f"{source}: {count} position embeddings do not form a square grid; give "
            "img_size=(height, width)"
        )
    return side * patch


def _head_arguments(found: Translation, decoder: str, source: str) -> dict[str, Any]:
    """Keyword arguments of `SETR`, except the encoder's.

    Channels from shapes; what shapes cannot show from the dialect (see docs/parity.md).
    """
    t, port = found.tensors, found.dialect == "mmseg"
    if decoder == "upernet":
        own = upernet_arguments(t, source)
    elif decoder == "dpt":
        own = dpt_arguments(found)
    elif decoder in ("segmenter", "linear"):
        own = segmenter_arguments(t, port)
    elif decoder == "mla":
        own = mla_arguments(t, port)
    else:
        own = upsampling_arguments(t, port)
    return {"prefix_tokens": "keep", "decoder_args": {}, "aux_args": {}, **own}
