"""Published EoMT checkpoints: names of their tensors, and what their shapes say.

Sources: tue-mps/eomt (models/eomt.py, models/vit.py) and Hugging Face transformers 5 (models/eomt).
"""

from __future__ import annotations

import re
from typing import Any

from setr.catalog import query_blocks
from setr.weight_files.encoder_layouts import huggingface, timm
from setr.weight_files.naming import Rule, Tensors, Translation, rename

HEAD_WIDTH = 64
_MLP = {"fc1": "0", "fc2": "2", "fc3": "4"}
_SIZES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}


def eomt(tensors: Tensors) -> Translation:
    """A checkpoint of the EoMT authors' repository."""
    return _joined(
        tensors,
        encoder=r"(?:network\.)?encoder\.backbone\.(.+)",
        layout=timm,
        heads=[
            (r"(?:network\.)?q\.weight", "decoder.queries"),
            (r"(?:network\.)?(class_head|mask_head|upscale)\.(.+)", r"decoder.\1.\2"),
        ],
        unused=r"(network\.)?(attn_mask_probs|encoder\.pixel_(mean|std))|criterion\..+",
    )


def eomt_huggingface(tensors: Tensors) -> Translation:
    """A checkpoint of transformers' EomtForUniversalSegmentation."""
    tensors = dict(tensors)
    table = tensors.pop("embeddings.position_embeddings.weight")
    tensors["embeddings.position_embeddings"] = table[None]
    return _joined(
        tensors,
        encoder=r"((?:embeddings|layers|layernorm)\..+)",
        layout=huggingface,
        heads=[
            (r"query\.weight", "decoder.queries"),
            (r"class_predictor\.(.+)", r"decoder.class_head.\1"),
            (r"mask_head\.(fc\d)\.(.+)", lambda m: f"decoder.mask_head.{_MLP[m[1]]}.{m[2]}"),
            (r"upscale_block\.block\.(\d+)\.layernorm2d\.(.+)", r"decoder.upscale.\1.norm.\2"),
            (r"upscale_block\.block\.(\d+)\.(conv\d)\.(.+)", r"decoder.upscale.\1.\2.\3"),
        ],
        unused=r"attn_mask_probs|criterion\..+",
    )


def _joined(
    tensors: Tensors, *, encoder: str, layout: Any, heads: list[Rule], unused: str
) -> Translation:
    """The encoder in one of the layouts of bare encoders, and the heads."""
    found = {name: re.fullmatch(encoder, name) for name in tensors}
    inner = layout({m[1]: tensors[name] for name, m in found.items() if m})
    renamed, rest = rename({n: v for n, v in tensors.items() if not found[n]}, heads)
    vit = {f"encoder.vit.{name}": value for name, value in inner.tensors.items()}
    unexpected = inner.unexpected + [name for name in rest if not re.fullmatch(unused, name)]
    return Translation("eomt", vit | renamed, whole=True, unexpected=unexpected)


def eomt_architecture(
    t: Tensors, *, num_heads: int | None = None, img_size: int | tuple[int, int] | None = None
) -> dict[str, Any]:
    """Keyword arguments of `SETR` for the tensors of an EoMT model, with our names.

    The encoder is a DINOv2 ViT with registers, as in all models of the authors.

    Args:
        t: the tensors.
        num_heads: number of attention heads; by default one per 64 channels.
        img_size: (height, width) in pixels; by default the position embeddings' square grid.
    """
    width = t["encoder.vit.pos_embed"].shape[-1]
    patch = t["encoder.vit.patch_embed.proj.weight"].shape[-1]
    grid = round(t["encoder.vit.pos_embed"].shape[1] ** 0.5)
    depth = 1 + max(int(m[1]) for n in t if (m := re.match(r"encoder\.vit\.blocks\.(\d+)\.", n)))
    size = _SIZES.get((width, depth))
    shape: dict[str, Any] = {"patch_size": patch, "query_blocks": query_blocks(depth)}
    if size is None:
        shape |= {"embed_dim": width, "depth": depth, "num_heads": max(1, width // HEAD_WIDTH)}
    if num_heads:
        shape["num_heads"] = num_heads
    return {
        "encoder": f"vit_{size or 'small'}_patch14_reg4_dinov2",
        "encoder_args": shape,
        "decoder": "eomt",
        "num_classes": len(t["decoder.class_head.weight"]) - 1,
        "taps": (depth,),
        "img_size": img_size or grid * patch,
        "decoder_args": {"num_queries": len(t["decoder.queries"])},
    }
