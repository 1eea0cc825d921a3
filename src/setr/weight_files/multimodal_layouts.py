"""Image encoders of image-text models under their authors' names.

CLIP as OpenAI and OpenCLIP write it (also Meta's Perception Encoder and MetaCLIP, RemoteCLIP and
others trained with OpenCLIP), Apple's AIMv2, OpenGVLab's InternViT, and Gemma 4. Text models are
left out.
"""

from __future__ import annotations

import math
import re

from setr.errors import SetrError
from setr.layers.patch_embedding import linear_patches
from setr.weight_files.naming import Rule, Tensors, Translation, rename


def openclip(tensors: Tensors) -> Translation:
    """CLIP's vision transformer with the names of OpenAI and OpenCLIP.

    Raises:
        SetrError: a model whose image encoder is another.
    """
    block = "transformer.resblocks.0.ln_1.weight"
    ends = [n.removesuffix(block) for n in tensors if n.endswith(block)]
    start = next((s for s in ends if f"{s}conv1.weight" in tensors), None)
    if start is None:
        raise SetrError("is a text model, or a CLIP whose image encoder is not a ViT")
    inside = re.escape(start)
    layer = inside + r"transformer\.resblocks\.(\d+)\."
    rules: list[Rule] = [
        (inside + r"conv1\.(.+)", r"patch_embed.proj.\1"),
        (inside + "class_embedding", "cls_token"),
        (inside + "positional_embedding", "pos_embed"),
        (inside + r"ln_pre\.(.+)", r"norm_pre.\1"),
        (inside + r"ln_post\.(.+)", r"norm.\1"),
        (layer + r"ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        (layer + r"attn\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
        (layer + r"attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        (layer + r"ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
        (layer + r"mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        (layer + r"mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    ]
    named, unexpected = rename(tensors, rules)
    named["pos_embed"] = named["pos_embed"][None]
    if "cls_token" in named:
        named["cls_token"] = named["cls_token"][None, None]
    return Translation("openclip", named, whole=False, unexpected=unexpected)


def aimv2(tensors: Tensors) -> Translation:
    """AIMv2 with Apple's names."""
    block = r"trunk\.blocks\.(\d+)\."
    rules: list[Rule] = [
        (r"preprocessor\.patchifier\.(.+)", r"patch_embed.\1"),
        (r"preprocessor\.pos_embed", "pos_embed"),
        (block + r"norm_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        (block + r"mlp\.fc1\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
        (block + r"mlp\.fc3\.(.+)", r"blocks.\1.mlp.fc1_x.\2"),
        (block + r"(.+)", r"blocks.\1.\2"),
        (r"trunk\.post_trunk_norm\.(.+)", r"norm.\1"),
    ]
    start = r"^.*?(?=preprocessor\.|trunk\.)"
    bare = {re.sub(start, "", name, count=1): value for name, value in tensors.items()}
    named, unexpected = rename(bare, rules)
    return Translation("aimv2", named, whole=False, unexpected=unexpected)


def internvit(tensors: Tensors) -> Translation:
    """InternViT with OpenGVLab's names, also inside InternVL."""
    start = r"(?:.*\.)?"
    layer = start + r"encoder\.layers\.(\d+)\."
    rules: list[Rule] = [
        (start + r"embeddings\.class_embedding", "cls_token"),
        (start + r"embeddings\.position_embedding", "pos_embed"),
        (start + r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
        (layer + r"ls([12])", r"blocks.\1.ls\2.gamma"),
        (layer + r"((?:norm[12]|attn|mlp)\..+)", r"blocks.\1.\2"),
    ]
    named, unexpected = rename(tensors, rules)
    return Translation("internvit", named, whole=False, unexpected=unexpected)


def gemma4(tensors: Tensors) -> Translation:
    """The vision encoder of Gemma 4 with the names of transformers or timm."""
    key = r"(.*\.)?(?:patch_embed|patch_embedder)\.input_proj\.weight$"
    start = next(found[1] or "" for name in tensors if (found := re.match(key, name)))
    inside = re.escape(start)
    layer = inside + r"(?:encoder\.layers|blocks)\.(\d+)\."
    norms = {
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "pre_feedforward_layernorm": "norm3",
        "post_feedforward_layernorm": "norm4",
    }
    rules: list[Rule] = [
        (inside + r"patch_embed(?:der)?\.input_proj\.weight", "patch_embed.proj.weight"),
        (inside + r"patch_embed(?:der)?\.position_embedding_table", "pos_embed"),
        (layer + rf"({'|'.join(norms)})\.(.+)", lambda m: f"blocks.{m[1]}.{norms[m[2]]}.{m[3]}"),
        (layer + r"(?:self_)?attn\.(?!rotary)(.+)", r"blocks.\1.attn.\2"),
        (layer + r"((?:norm\d|mlp)\..+)", r"blocks.\1.\2"),
    ]
    named, unexpected = rename(tensors, rules)
    weight, table = named["patch_embed.proj.weight"], named.pop("pos_embed")
    side = math.isqrt(weight.shape[1] // 3)
    named |= {
        "patch_embed.proj.weight": linear_patches(weight, (side, side), channels_last=False),
        "pos_embed_x": table[:1],
        "pos_embed_y": table[1:],
    }
    return Translation("gemma4", named, whole=False, unexpected=unexpected)
