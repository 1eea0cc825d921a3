"""mmsegmentation's UPerNet on plain ViTs (1.2.2, configs/vit, beit and mae): names, architecture.

Its neck numbers levels as the maps come, shallow to deep, as ours does. The final norm of the
encoder (`ln`) belongs to our neck, and so do the head's lateral convolutions. On BEiT and MAE the
neck is Feature2Pyramid, with transposed convolutions.
"""

from __future__ import annotations

import re
from typing import Any

from setr.errors import SetrError
from setr.weight_files.naming import CONV_BN, Rule, Tensors, count_parts, numbered

MARKER = "decoder.join.0.weight"
"""A tensor that only UPerNet has, by our name."""


def upernet_rules(tensors: Tensors) -> list[Rule]:
    """Rules for everything but the encoder's blocks, after `decode_head.` became `decoder.`.

    None for other heads.
    """
    if "decoder.fpn_bottleneck.conv.weight" not in tensors:
        return []
    last = count_parts(tensors, r"decoder\.lateral_convs\.(\d+)\.conv\.weight")

    def level(part: str) -> Any:
        def name(m: re.Match) -> str:
            owner = "neck.last" if int(m[1]) == last else f"neck.levels.{m[1]}"
            return f"{owner}.{part}.{m[2]}"

        return name

    return [
        (r"backbone\.ln1\.(.+)", r"neck.norm.\1"),
        (r"neck\.upsample_4x\.([01])\.(.+)", r"neck.levels.0.first.\1.\2"),
        (r"neck\.upsample_4x\.3\.(.+)", r"neck.levels.0.up.\1"),
        (r"neck\.upsample_2x\.0\.(.+)", r"neck.levels.1.up.\1"),
        (r"neck\.lateral_convs\.(\d+)\.conv\.(.+)", level("project")),
        (r"neck\.convs\.(\d+)\.conv\.(.+)", level("conv")),
        (rf"decoder\.lateral_convs\.(\d+)\.{CONV_BN}", numbered(r"neck.levels.\1.lateral")),
        (rf"decoder\.psp_modules\.(\d+)\.1\.{CONV_BN}", numbered(r"decoder.pools.\1.conv")),
        (rf"decoder\.bottleneck\.{CONV_BN}", numbered("decoder.context")),
        (rf"decoder\.fpn_convs\.(\d+)\.{CONV_BN}", numbered(r"decoder.smooth.\1")),
        (rf"decoder\.fpn_bottleneck\.{CONV_BN}", numbered("decoder.join")),
        (rf"(aux_heads\.\d+\.convs\.\d+)\.{CONV_BN}", numbered(r"\1")),
        (rf"(aux_heads\.\d+)\.conv_cat\.{CONV_BN}", numbered(r"\1.join")),
    ]


def upernet_arguments(t: Tensors, source: str) -> dict[str, Any]:
    """Keyword arguments of `SETR` for the heads, from the shapes of tensors with our names.

    Raises:
        SetrError: pooling grids other than mmsegmentation's, which shapes cannot show.
    """
    pyramid = "neck.last.conv.weight" in t
    pools = count_parts(t, r"decoder\.pools\.(\d+)\.conv\.0\.weight")
    if pools != 4:
        raise SetrError(f"{source}: UPerNet with {pools} pooling grids; only 1, 2, 3, 6 are known")
    aux: dict[str, Any] = {}
    if "aux_heads.0.classifier.weight" in t:
        aux = {
            "channels": t["aux_heads.0.classifier.weight"].shape[1],
            "num_convs": count_parts(t, r"aux_heads\.0\.convs\.(\d+)\.0\.weight"),
            "concat_input": "aux_heads.0.join.0.weight" in t,
        }
    neck: dict[str, Any] = {"feature2pyramid": True}
    if "neck.levels.1.up.weight" not in t:
        neck = {
            "inner": t["neck.last.conv.weight"].shape[0] if pyramid else None,
            "pyramid": pyramid,
            "norm_last": "neck.norm.weight" in t,
        }
    return {
        # an encoder without absolute positions has no other mode
        "pos_interp": "bicubic_plain" if "encoder.vit.pos_embed" in t else "bicubic",
        "neck_args": {"channels": t[MARKER].shape[0], **neck},
        "aux_args": aux,
    }
