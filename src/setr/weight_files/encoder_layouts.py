"""Encoder checkpoints of timm, DeiT, DINO, SigLIP, CLIP, Hugging Face, Google (.npz) and ResNets.

Tensors are renamed to timm's names without a prefix.
"""

from __future__ import annotations

import re

import torch

from setr.weight_files.flexible_layouts import convolution, plain_names
from setr.weight_files.frames import is_of_dates, of_one_date
from setr.weight_files.naming import Rule, Tensors, Translation, rename, start_of, with_batch_axis
from setr.weight_files.relative_bias import TABLE, part_bias, spread_shared_table, without_pairs

PREFIX = (
    r"(?:(?:backbone|base_encoder|encoder|model|student|target_encoder|teacher|trunk|vision_encoder"
    r"|visual|vit)\.)*"
)
"""What others write before timm's names, as a regular expression."""


def timm(tensors: Tensors) -> Translation:
    """A checkpoint of timm (also its NaFlex ViT), DeiT, BEiT, DINOv2, EVA, MAE or Prithvi.

    Their names differ little. Of a student and its teacher, the teacher is taken.
    """
    rules: list[Rule] = [
        (r"register_tokens", "reg_token"),
        (r"(blocks\.\d+\.mlp\.)w12\.(.+)", r"\1fc1.\2"),
        (r"(blocks\.\d+\.mlp\.)w1\.(.+)", r"\1fc1_g.\2"),
        (r"(blocks\.\d+\.mlp\.)w2\.(.+)", r"\1fc1_x.\2"),
        (r"(blocks\.\d+\.mlp\.)w3\.(.+)", r"\1fc2.\2"),
        (r"(blocks\.\d+\.mlp\.)ffn_ln\.(.+)", r"\1norm.\2"),
        (r"(blocks\.\d+\.attn\.)inner_attn_ln\.(.+)", r"\1norm.\2"),
        (r"(?!mask_token|.*rope\.freqs_(?:cos|sin)$)(.+)", r"\1"),
    ]
    prefixes = {found[1] for n in tensors if (found := re.match(rf"({PREFIX})blocks\.\d", n))}
    prefix = max(prefixes, key=lambda text: ("teacher" in text, -len(text)), default="")
    outside = [name for name in tensors if not name.startswith(prefix)]
    bare = {
        re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name.removeprefix(prefix)): value
        for name, value in tensors.items()  # DINOv2's training numbers chunks of blocks, too
        if name.startswith(prefix)
    }
    renamed, unexpected = rename(spread_shared_table(plain_names(bare)), rules)
    for name in [n for n in renamed if re.search(r"\.attn\.[qv]_bias$", n)]:
        stem, part = name.rsplit(".", 1)
        if f"{stem}.{part[0]}_proj.weight" in renamed:
            renamed[f"{stem}.{part[0]}_proj.bias"] = renamed.pop(name)
    dialect = "deit" if "dist_token" in renamed else "timm"
    if is_of_dates(renamed):
        dialect, renamed = "prithvi", of_one_date(renamed)
    return Translation(dialect, renamed, unexpected + outside)


def huggingface(tensors: Tensors) -> Translation:
    """A ViT, DeiT, BEiT or DINOv2 checkpoint of transformers, up to version 4 or from 5 on."""
    layer = r"(?:encoder\.layer|layers)\.(\d+)\."
    rules: list[Rule] = [
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.distillation_token", "dist_token"),
        (r"embeddings\.register_tokens", "reg_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
        (layer + r"attention\.attention\.([qkv])(?:uery|ey|alue)\.(.+)", r"blocks.\1.attn.\2.\3"),
        (layer + r"attention\.([qkv])_proj\.(.+)", r"blocks.\1.attn.\2.\3"),
        (
            layer + r"attention\.(?:output\.dense|o_proj|out_proj|projection_layer)\.(.+)",
            r"blocks.\1.attn.proj.\2",
        ),
        (layer + r"(?:layernorm_before|norm1)\.(.+)", r"blocks.\1.norm1.\2"),
        (layer + r"(?:layernorm_after|norm2)\.(.+)", r"blocks.\1.norm2.\2"),
        (
            layer + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(.+)",
            r"blocks.\1.mlp.fc1.\2",
        ),
        (layer + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        (layer + r"lambda_([12])", r"blocks.\1.gamma_\2"),
        (
            layer + rf"(?:attention\.attention\.)?relative_position_bias\.({TABLE})",
            r"blocks.\1.attn.\2",
        ),
        (rf"(?:.*\.)?encoder\.relative_position_bias\.({TABLE})", r"rel_pos_bias.\1"),
        (layer + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        (r"layernorm\.(.+)", r"norm.\1"),
    ]
    start = start_of(tensors, r"embeddings\.patch_embeddings\.projection\.weight")
    renamed, unexpected = rename(without_pairs(tensors), rules, start)
    for name in [name for name in renamed if re.search(r"\.attn\.[qv]\.bias$", name)]:
        stem, _, part = name.removesuffix(".bias").rpartition(".")
        if f"{stem}.k.bias" not in renamed:  # BEiT's keys have none
            renamed[f"{stem}.{part}_bias"] = renamed.pop(name)
    return Translation("huggingface", _join_qkv(spread_shared_table(renamed)), unexpected)


def dinov3(tensors: Tensors) -> Translation:
    """A DINOv3 checkpoint with Meta's names or those of transformers."""
    start = (
        r"^.*?(?=embeddings\.|layer\.\d|blocks\.\d|cls_token|storage_tokens|patch_embed\.|norm\.)"
    )
    unused = r"mask_token|\.bias_mask$|rope_embed"  # only for pretraining; constant; computed
    bare = {
        re.sub(start, "", name, count=1): value
        for name, value in tensors.items()
        if not re.search(unused, name)
    }
    block = r"(?:layer|blocks)\.(\d+)\."
    gated = any(re.search(r"\.mlp\.(w1|gate_proj)\.", name) for name in bare)
    up = "fc1_x" if gated else "fc1"
    rules: list[Rule] = [
        (r"(?:embeddings\.)?cls_token", "cls_token"),
        (r"storage_tokens|embeddings\.register_tokens", "reg_token"),
        (
            r"(?:patch_embed\.proj|embeddings\.patch_embeddings)\.(weight|bias)",
            r"patch_embed.proj.\1",
        ),
        (block + r"(?:ls|layer_scale)([12])\.(?:gamma|lambda1)", r"blocks.\1.gamma_\2"),
        (block + r"(norm[12])\.(.+)", r"blocks.\1.\2.\3"),
        (block + r"(attn\.qkv\..+)", r"blocks.\1.\2"),
        (block + r"attention\.([qkv])_proj\.weight", r"blocks.\1.attn.\2.weight"),
        (block + r"attention\.([qv])_proj\.bias", r"blocks.\1.attn.\2_bias"),
        (block + r"(?:attn\.proj|attention\.o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
        (block + r"mlp\.(?:w1|gate_proj)\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
        (block + r"mlp\.(?:fc1|w2|up_proj)\.(.+)", rf"blocks.\1.mlp.{up}.\2"),
        (block + r"mlp\.(?:fc2|w3|down_proj)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        (r"norm\.(.+)", r"norm.\1"),
    ]
    renamed, unexpected = rename(bare, rules)
    for name in [name for name in renamed if name.endswith(".attn.qkv.bias")]:
        part_bias(renamed, name)  # DINOv3 masks the bias of the key
    return Translation("dinov3", _join_qkv(renamed), unexpected)


def siglip(tensors: Tensors) -> Translation:
    """SigLIP, SigLIP 2 (also NaFlex) or CLIP of transformers, without text model and head."""
    layer = r"encoder\.layers\.(\d+)\."
    rules: list[Rule] = [
        (r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
        (r"embeddings\.position_embedding\.weight", "pos_embed"),
        (r"embeddings\.class_embedding", "cls_token"),
        (r"pre_layrnorm\.(.+)", r"norm_pre.\1"),
        (layer + r"self_attn\.([qkv])_proj\.(.+)", r"blocks.\1.attn.\2.\3"),
        (layer + r"self_attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        (layer + r"layer_norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        (layer + r"(mlp\.fc[12]\..+)", r"blocks.\1.\2"),
        (r"post_layernorm\.(.+)", r"norm.\1"),
    ]
    start = start_of(tensors, r"embeddings\.patch_embedding\.weight")
    named, unexpected = rename(tensors, rules, start)
    named["patch_embed.proj.weight"] = convolution(named["patch_embed.proj.weight"])
    dialect = "clip" if "cls_token" in named else "siglip"
    return Translation(dialect, _join_qkv(with_batch_axis(named)), unexpected)


def google(tensors: Tensors) -> Translation:
    """Google's ViT and AugReg checkpoints: kernels are (in, out), attention is split by head."""
    bare = {re.sub(r"^(opt/target/|params/(img/)?)", "", k): v for k, v in tensors.items()}
    block = r"Transformer/encoderblock_(\d+)/"
    attn = block + r"MultiHeadDotProductAttention_\d/"
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    rules: list[Rule] = [
        (r"cls", "cls_token"),
        (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed"),
        (r"embedding/(kernel|bias)", lambda m: f"patch_embed.proj.{leaf[m[1]]}"),
        (r"Transformer/encoder_norm/(scale|bias)", lambda m: f"norm.{leaf[m[1]]}"),
        (
            block + r"LayerNorm_(\d)/(scale|bias)",
            lambda m: f"blocks.{m[1]}.norm{1 if m[2] == '0' else 2}.{leaf[m[3]]}",
        ),
        (
            attn + r"([qkvo])(?:uery|ey|alue|ut)/(kernel|bias)",
            lambda m: f"blocks.{m[1]}.attn.{m[2]}.{leaf[m[3]]}",
        ),
        (
            block + r"MlpBlock_\d/Dense_(\d)/(kernel|bias)",
            lambda m: f"blocks.{m[1]}.mlp.fc{int(m[2]) + 1}.{leaf[m[3]]}",
        ),
    ]
    renamed, unexpected = rename(bare, rules)
    plain: Tensors = {}
    for name, value in renamed.items():
        if name == "patch_embed.proj.weight":
            value = value.permute(3, 2, 0, 1)  # height, width, in, out -> out, in, height, width
        elif re.search(r"attn\.[qkv]\.weight", name):
            value = value.flatten(1).T
        elif name.endswith("attn.o.weight"):
            value = value.flatten(0, 1).T
        elif re.search(r"attn\.[qkv]\.bias", name):
            value = value.flatten()
        elif re.search(r"mlp\.fc\d\.weight", name):
            value = value.T
        plain[name.replace("attn.o.", "attn.proj.")] = value.contiguous()
    return Translation("google", _join_qkv(plain), unexpected)


def _join_qkv(tensors: Tensors) -> Tensors:
    """Concatenate separate query, key and value projections into timm's `qkv`."""
    joined = {}
    for name, value in tensors.items():
        if ".attn.q." in name:
            start, end = name.split(".attn.q.")
            parts = [f"{start}.attn.{letter}.{end}" for letter in "qkv"]
            if all(part in tensors for part in parts):
                joined[f"{start}.attn.qkv.{end}"] = torch.cat([tensors[p] for p in parts])
        elif not re.search(r"\.attn\.[kv]\.", name):
            joined[name] = value
    return joined


def resnet(tensors: Tensors) -> Translation:
    """ResNets of torchvision and timm, which already have our names."""
    return Translation("resnet", tensors)
