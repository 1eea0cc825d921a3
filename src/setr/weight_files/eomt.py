"""Published EoMT checkpoints: names of their tensors, and what their shapes say.

Sources: tue-mps/eomt (models/eomt.py, models/vit.py) and Hugging Face transformers 5 (models/eomt
and models/eomt_dinov3). With DINOv3, the authors' encoder is that of transformers, so both files
have its names. Those of LightlyTrain are in `lightly_layouts.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from setr.catalog import query_blocks as usual_blocks
from setr.errors import SetrError
from setr.layers.mask_classifier import usual_doublings
from setr.weight_files.encoder_layouts import dinov3, huggingface, timm
from setr.weight_files.naming import DELTA, Rule, Tensors, Translation, count_parts, rename

HEAD_WIDTH = 64
_REGISTERS = 4
_MLP = {"fc1": "0", "fc2": "2", "fc3": "4"}
_DINOV2 = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
_DINOV3 = {(384, 12): "small", (768, 12): "base", (1024, 24): "large"}
_GATED_DINOV3 = {(384, 12): "small_plus", (1280, 32): "huge_plus", (4096, 40): "7b"}
_NORM_EPS = {"dinov2": 1e-6, "dinov3": 1e-5}
_SIDE = 512
"""Side in pixels of the crops of the authors' semantic model on DINOv3, which no tensor shows."""


def eomt(tensors: Tensors) -> Translation:
    """A checkpoint of the EoMT authors' repository; with DINOv3, usually differences to it."""
    on_dinov3 = any(name.endswith("backbone.patch_embed.register_tokens") for name in tensors)
    return joined(
        tensors,
        dialect=DELTA if on_dinov3 else "eomt",
        encoder=r"(?:network\.)?encoder\.backbone\.(.+)",
        layout=_transformers_dinov3 if on_dinov3 else timm,
        heads=[
            (r"(?:network\.)?q\.weight", "decoder.queries"),
            (r"(?:network\.)?(class_head|mask_head|upscale)\.(.+)", r"decoder.\1.\2"),
        ],
        unused=r"(network\.)?(attn_mask_probs|encoder\.pixel_(mean|std))|criterion\..+",
    )


def eomt_huggingface(tensors: Tensors) -> Translation:
    """A checkpoint of transformers' Eomt… or EomtDinov3ForUniversalSegmentation.

    Raises:
        SetrError: DINOv3 with gated MLPs, with whose activation transformers builds the heads.
    """
    on_dinov3 = "embeddings.patch_embeddings.weight" in tensors
    if on_dinov3 and "layers.0.mlp.gate_proj.weight" in tensors:
        raise SetrError(
            "EoMT of transformers on a gated DINOv3 (ViT-S+, ViT-H+) has other heads; supported "
            "are ViT-S, ViT-B and ViT-L"
        )
    if not on_dinov3:
        tensors = dict(tensors)
        table = tensors.pop("embeddings.position_embeddings.weight")
        tensors["embeddings.position_embeddings"] = table[None]
    found = joined(
        tensors,
        dialect="eomt",
        encoder=r"((?:embeddings|layers|layernorm)\..+)",
        layout=_transformers_dinov3 if on_dinov3 else huggingface,
        heads=[
            (r"query\.weight", "decoder.queries"),
            (r"class_predictor\.(.+)", r"decoder.class_head.\1"),
            (r"mask_head\.(fc\d)\.(.+)", lambda m: f"decoder.mask_head.{_MLP[m[1]]}.{m[2]}"),
            (r"upscale_block\.block\.(\d+)\.layernorm2d\.(.+)", r"decoder.upscale.\1.norm.\2"),
            (r"upscale_block\.block\.(\d+)\.(conv\d)\.(.+)", r"decoder.upscale.\1.\2.\3"),
        ],
        unused=r"attn_mask_probs|criterion\..+",
    )
    found.settings["is_masked"] = bool(tensors.get("attn_mask_probs", torch.zeros(1)).any())
    return found


def _transformers_dinov3(tensors: Tensors) -> Translation:
    """The encoder as in transformers' DINOv3, under the names it has inside EoMT."""
    rules: list[Rule] = [
        (r"patch_embed\.(.+)", r"embeddings.\1"),
        (r"layers\.(.+)", r"layer.\1"),
        (r"layernorm\.(.+)", r"norm.\1"),
        (r"(.+)", r"\1"),
    ]
    return dinov3(rename(tensors, rules)[0])


def joined(
    tensors: Tensors, *, dialect: str, encoder: str, layout: Any, heads: list[Rule], unused: str
) -> Translation:
    """The encoder in one of the layouts of bare encoders, and the heads."""
    found = {name: re.fullmatch(encoder, name) for name in tensors}
    inner = layout({m[1]: tensors[name] for name, m in found.items() if m})
    renamed, rest = rename({n: v for n, v in tensors.items() if not found[n]}, heads)
    vit = {f"encoder.vit.{name}": value for name, value in inner.tensors.items()}
    if inner.unexpected:
        raise SetrError(f"EoMT on an encoder of another form: it has {inner.unexpected[0]}")
    unexpected = [name for name in rest if not re.fullmatch(unused, name)]
    masks = [value for name, value in tensors.items() if name.endswith("attn_mask_probs")]
    settings = {"query_blocks": masks[0].numel()} if masks else {}
    return Translation(dialect, vit | renamed, whole=True, unexpected=unexpected, settings=settings)


def eomt_architecture(
    found: Translation,
    meta: Mapping[str, Any] = MappingProxyType({}),
    *,
    num_heads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `SETR` for an EoMT model.

    The encoder is a DINOv2 ViT with registers or, if there are no position embeddings, DINOv3's.

    Args:
        found: its tensors, with our names.
        meta: what is stored beside them: `num_heads`, the `norm_eps` of the encoder, `query_blocks`
            (the number of blocks with queries), and the `side` of a square image in pixels.
        num_heads: number of attention heads; by default as in `meta`, else one per 64 channels.
        img_size: (height, width) in pixels; by default the position embeddings' square grid.
    """
    t = found.tensors
    num_heads = num_heads or meta.get("num_heads")
    encoder, shape, grid_side = dino_encoder(t, num_heads, meta.get("norm_eps"))
    depth = encoder_blocks(t)
    blocks = meta.get("query_blocks") or found.settings.get("query_blocks") or usual_blocks(depth)
    heads: dict[str, Any] = {"num_queries": len(t["decoder.queries"])}
    patch = shape["patch_size"]
    if (doublings := count_parts(t, r"decoder\.upscale\.(\d+)\.")) != usual_doublings(patch):
        heads["doublings"] = doublings
    if (eps := found.settings.get("upscale_eps")) is not None:
        heads["norm_eps"] = eps
    return {
        "encoder": encoder,
        "encoder_args": {**shape, "query_blocks": blocks},
        "decoder": "eomt",
        "num_classes": len(t["decoder.class_head.weight"]) - 1,
        "taps": (depth,),
        "img_size": img_size or grid_side or meta.get("side") or _SIDE,
        "decoder_args": heads,
    }


def encoder_blocks(t: Tensors) -> int:
    """The number of the encoder's blocks; an error among `BROKEN` without any."""
    return 1 + max(int(m[1]) for n in t if (m := re.match(r"encoder\.vit\.blocks\.(\d+)\.", n)))


def dino_encoder(
    t: Tensors, num_heads: int | None = None, norm_eps: float | None = None
) -> tuple[str, dict[str, Any], int | None]:
    """A DINOv2 ViT or, if there are no position embeddings, DINOv3's, from the shapes of tensors.

    Args:
        t: tensors with our names.
        num_heads: number of attention heads; by default one per 64 channels.
        norm_eps: epsilon of the encoder's norms; by default DINOv2's or DINOv3's.

    Returns:
        Its timm name, the keyword arguments in which it differs, and the side in pixels of the
        images whose grid the positions are for; None without positions.
    """
    positions = t.get("encoder.vit.pos_embed")
    width = t["encoder.vit.cls_token"].shape[-1]
    patch = t["encoder.vit.patch_embed.proj.weight"].shape[-1]
    depth, side = encoder_blocks(t), None
    if positions is not None:
        family, name = "dinov2", "vit_{}_patch14_reg4_dinov2"
        size, other = _DINOV2.get((width, depth)), "small"
        side = round(positions.shape[1] ** 0.5) * patch
    else:
        family, gated = "dinov3", "encoder.vit.blocks.0.mlp.fc1_g.weight" in t
        biased = "encoder.vit.blocks.0.attn.q_bias" in t
        name = "vit_{}_patch16_dinov3" + ("_qkvb" if biased else "")
        size = (_GATED_DINOV3 if gated else _DINOV3).get((width, depth))
        other = "small_plus" if gated else "small"
    shape: dict[str, Any] = {"patch_size": patch}
    if size is None:
        shape |= {"embed_dim": width, "depth": depth, "num_heads": max(1, width // HEAD_WIDTH)}
    if num_heads:
        shape["num_heads"] = num_heads
    if norm_eps and norm_eps != _NORM_EPS[family]:
        shape["norm_eps"] = norm_eps
    registers = t.get("encoder.vit.reg_token")
    if positions is not None and (registers is None or registers.shape[1] != _REGISTERS):
        shape["reg_tokens"] = 0 if registers is None else registers.shape[1]
    return name.format(size or other), shape, side
