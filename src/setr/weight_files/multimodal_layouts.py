"""Image encoders of image-text models under their authors' names.

CLIP as OpenAI and OpenCLIP write it (also Meta's Perception Encoder and MetaCLIP, RemoteCLIP and
others trained with OpenCLIP), Apple's AIMv2, OpenGVLab's InternViT, and Gemma 4. Text models are
left out.
"""

from __future__ import annotations

from setr.errors import SetrError
from setr.weight_files.flexible_layouts import convolution
from setr.weight_files.naming import Rule, Tensors, Translation, rename, start_of, with_batch_axis


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
    layer = r"transformer\.resblocks\.(\d+)\."
    rules: list[Rule] = [
        (r"conv1\.(.+)", r"patch_embed.proj.\1"),
        (r"class_embedding", "cls_token"),
        (r"positional_embedding", "pos_embed"),
        (r"ln_pre\.(.+)", r"norm_pre.\1"),
        (r"ln_post\.(.+)", r"norm.\1"),
        (layer + r"ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        (layer + r"attn\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
        (layer + r"attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        (layer + r"ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
        (layer + r"mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        (layer + r"mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    ]
    named, unexpected = rename(tensors, rules, start)
    return Translation("openclip", with_batch_axis(named), unexpected)


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
    start = start_of(tensors, r"preprocessor\.patchifier\.proj\..+")
    return Translation("aimv2", *rename(tensors, rules, start))


def internvit(tensors: Tensors) -> Translation:
    """InternViT with OpenGVLab's names, also inside InternVL."""
    layer = r"encoder\.layers\.(\d+)\."
    rules: list[Rule] = [
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.position_embedding", "pos_embed"),
        (r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
        (layer + r"ls([12])", r"blocks.\1.ls\2.gamma"),
        (layer + r"((?:norm[12]|attn|mlp)\..+)", r"blocks.\1.\2"),
    ]
    start = start_of(tensors, r"encoder\.layers\.0\.attn\.qkv\..+")
    return Translation("internvit", *rename(tensors, rules, start))


def gemma4(tensors: Tensors) -> Translation:
    """The vision encoder of Gemma 4 with the names of transformers or timm."""
    layer = r"(?:encoder\.layers|blocks)\.(\d+)\."
    norms = {
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "pre_feedforward_layernorm": "norm3",
        "post_feedforward_layernorm": "norm4",
    }
    rules: list[Rule] = [
        (r"patch_embed(?:der)?\.input_proj\.weight", "patch_embed.proj.weight"),
        (r"patch_embed(?:der)?\.position_embedding_table", "pos_embed"),
        (layer + rf"({'|'.join(norms)})\.(.+)", lambda m: f"blocks.{m[1]}.{norms[m[2]]}.{m[3]}"),
        (layer + r"(?:self_)?attn\.(?!rotary)(.+)", r"blocks.\1.attn.\2"),
        (layer + r"((?:norm\d|mlp)\..+)", r"blocks.\1.\2"),
    ]
    start = start_of(tensors, r"patch_embed(?:der)?\.input_proj\.weight")
    named, unexpected = rename(tensors, rules, start)
    weight, table = named["patch_embed.proj.weight"], named.pop("pos_embed")
    named["patch_embed.proj.weight"] = convolution(weight, channels_last=False)
    named |= {"pos_embed_x": table[:1], "pos_embed_y": table[1:]}
    return Translation("gemma4", named, unexpected)
