"""Tensor names of every public checkpoint layout of SETR and of plain ViTs, mapped to ours.

Pure functions on name -> tensor. Whole models (`official` = the authors' repository, `mmseg`, our
own `setr`) come out under our full names. Encoders (`google` .npz, `timm` with DeiT and DINOv2,
`huggingface`, `resnet`) come out under timm names without prefix.

Where the port stores less, tensors are filled in so that the function is the same: it has no bias
before batch norms, and MLA levels run from deep to shallow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from setr.errors import SetrError

Tensors = dict[str, Tensor]
_Rule = tuple[str, str | Callable[[re.Match], str]]


@dataclass(frozen=True)
class Translation:
    """A checkpoint under our names.

    Attributes:
        dialect: the layout that was recognised.
        tensors: of a whole model (`encoder.…`, `neck.…`, `decoder.…`, `aux_heads.…`), or of an
            encoder with timm names.
        whole: whether decoder and auxiliary heads are included.
        unexpected: names in the file that have no counterpart.
        filled: our names that the dialect does not store, with the value it implies (zero).
    """

    dialect: str
    tensors: Tensors
    whole: bool
    unexpected: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)


def translate(given: Tensors, source: str = "checkpoint") -> Translation:
    """Recognise the layout of a checkpoint and map its names to ours.

    Raises:
        SetrError: none of the known layouts.
    """
    tensors = {re.sub(r"^(module\.)+", "", name): value for name, value in given.items()}
    for marker, convert in _DIALECTS:
        if any(re.match(marker, name) for name in tensors):
            try:
                return convert(tensors)
            except (KeyError, IndexError, RuntimeError) as error:
                raise SetrError(
                    f"{source}: cut or damaged, tensors contradict its layout ({error!r:.80})"
                ) from None
    raise SetrError(
        f"{source}: no known layout (its tensors are called {', '.join(list(given)[:3])}, …); "
        "readable are SETR models of this toolkit, the authors and mmsegmentation, and encoders "
        "from Google, timm, DeiT, Hugging Face ViT/DINOv2 and torchvision ResNets"
    )


def _rename(tensors: Tensors, rules: list[_Rule]) -> tuple[Tensors, list[str]]:
    """Apply the first rule that matches a whole name; names without a rule are returned."""
    renamed, unexpected = {}, []
    for name, value in tensors.items():
        for pattern, target in rules:
            if found := re.fullmatch(pattern, name):
                renamed[found.expand(target) if isinstance(target, str) else target(found)] = value
                break
        else:
            unexpected.append(name)
    return renamed, unexpected


# --- whole models ---------------------------------------------------------------------------------

_HEADS: list[_Rule] = [
    (r"decode_head\.(.+)", r"decoder.\1"),
    (r"auxiliary_head\.(\d+\..+)", r"aux_heads.\1"),
    (r"auxiliary_head\.(\D.+)", r"aux_heads.0.\1"),
    (r"((?:backbone|neck)\..+)", r"\1"),
]
_HEAD = r"(decoder|aux_heads\.\d+)"
_PREFIX = r"cls_token|dist_token|pos_embed"


def _official(tensors: Tensors) -> Translation:
    tensors, unexpected = _rename(tensors, _HEADS)

    def convolution(found: re.Match) -> str:
        head, i, kind = found.groups()
        has_norm = f"{head}.syncbn_fc_{i}.weight" in tensors
        return f"{head}.convs.{i}.0.{kind}" if has_norm else f"{head}.classifier.{kind}"

    def level(part: str) -> Callable[[re.Match], str]:  # the authors count levels 2 to 5
        return lambda m: f"neck.{part}.{int(m[1]) - 2}.{m[2]}"

    rules: list[_Rule] = [
        (rf"backbone\.((?:blocks|patch_embed)\..+|{_PREFIX})", r"encoder.vit.\1"),
        (r"backbone\.norm_(\d)\.(.+)", r"neck.norms.\1.\2"),
        (r"backbone\.mla\.mla_p(\d)_1x1\.(.+)", level("reduce")),
        (r"backbone\.mla\.mla_p(\d)\.(.+)", level("refine")),
        (
            r"decoder\.mlahead\.head(\d)\.(\d)\.(.+)",
            lambda m: f"decoder.streams.{int(m[1]) - 2}.{int(m[2]) // 3}.{int(m[2]) % 3}.{m[3]}",
        ),
        (r"decoder\.cls\.(.+)", r"decoder.classifier.\1"),
        (r"(aux_heads\.\d+)\.aux\.(.+)", r"\1.classifier.\2"),
        (rf"{_HEAD}\.norm\.(.+)", r"\1.norm.\2"),
        (rf"{_HEAD}\.syncbn_fc_(\d)\.(.+)", r"\1.convs.\2.1.\3"),
        (rf"{_HEAD}\.conv_(\d)\.(.+)", convolution),
    ]
    renamed, rest = _rename(tensors, rules)
    # every head of the authors also carries a classifier `conv_seg` that nothing calls
    unexpected += [name for name in rest if ".conv_seg." not in name]
    return Translation("official", renamed, whole=True, unexpected=unexpected)


def _mmseg(tensors: Tensors) -> Translation:
    tensors, unexpected = _rename(tensors, _HEADS)
    last = sum(re.fullmatch(r"neck\.norm\.\d+\.weight", name) is not None for name in tensors) - 1

    def level(part: str) -> Callable[[re.Match], str]:  # deepest first in the port
        return lambda m: f"{part}.{last - int(m[1])}.{_CONV_BN[m[2]]}.{m[3]}"

    rules: list[_Rule] = [
        (rf"backbone\.({_PREFIX})", r"encoder.vit.\1"),
        (r"backbone\.patch_embed\.projection\.(.+)", r"encoder.vit.patch_embed.proj.\1"),
        (
            r"backbone\.layers\.(\d+)\.(ln1|ln2|attn\.attn|ffn\.layers\.0\.0|ffn\.layers\.1)[._](.+)",
            lambda m: f"encoder.vit.blocks.{m[1]}.{_mmseg_block(m[2], m[3])}",
        ),
        (r"neck\.norm\.(\d)\.(.+)", r"neck.norms.\1.\2"),
        (
            r"neck\.mla\.channel_proj\.(\d)\.(conv|bn)\.(.+)",
            lambda m: f"neck.reduce.{m[1]}.{_CONV_BN[m[2]]}.{m[3]}",
        ),
        (r"neck\.mla\.feat_extract\.(\d)\.(conv|bn)\.(.+)", level("neck.refine")),
        (rf"{_HEAD}\.conv_seg\.(.+)", r"\1.classifier.\2"),
        (rf"{_HEAD}\.norm\.(.+)", r"\1.norm.\2"),
    ]
    if last >= 0:
        rules.append(
            (
                r"decoder\.up_convs\.(\d)\.(\d)\.(conv|bn)\.(.+)",
                lambda m: f"decoder.streams.{last - int(m[1])}.{m[2]}.{_CONV_BN[m[3]]}.{m[4]}",
            )
        )
    rules.append(
        (
            rf"{_HEAD}\.up_convs\.(\d)\.0\.(conv|bn)\.(.+)",
            lambda m: f"{m[1]}.convs.{m[2]}.{_CONV_BN[m[3]]}.{m[4]}",
        )
    )
    renamed, rest = _rename(tensors, rules)
    if last >= 0:  # the classifier's input channels follow the reversed levels
        weight = renamed["decoder.classifier.weight"]
        parts = weight.chunk(last + 1, dim=1)
        renamed["decoder.classifier.weight"] = torch.cat(parts[::-1], dim=1)
    filled = _fill_biases(renamed)
    return Translation("mmseg", renamed, whole=True, unexpected=unexpected + rest, filled=filled)


_CONV_BN = {"conv": "0", "bn": "1"}
_MMSEG_BLOCK = {
    "ln1": "norm1.",
    "ln2": "norm2.",
    "attn.attn": "attn.",
    "ffn.layers.0.0": "mlp.fc1.",
    "ffn.layers.1": "mlp.fc2.",
}


def _mmseg_block(part: str, rest: str) -> str:
    rest = rest.replace("in_proj_", "qkv.").replace("out_proj.", "proj.")
    return _MMSEG_BLOCK[part] + rest


def _fill_biases(tensors: Tensors) -> list[str]:
    """Add zero biases where the port has none: before batch norms and in the patch projection."""
    filled = []
    for name, value in list(tensors.items()):
        if re.fullmatch(rf"{_HEAD}\.convs\.\d\.0\.weight|.*patch_embed\.proj\.weight", name):
            bias = name.replace(".weight", ".bias")
            if bias not in tensors:
                tensors[bias] = value.new_zeros(len(value))
                filled.append(bias)
    return filled


def _own(tensors: Tensors) -> Translation:
    return Translation("setr", tensors, whole=any(n.startswith("decoder.") for n in tensors))


# --- encoders -------------------------------------------------------------------------------------


def _timm(tensors: Tensors) -> Translation:
    rules: list[_Rule] = [
        (r"register_tokens", "reg_token"),
        (r"(blocks\.\d+\.mlp\.)w12\.(.+)", r"\1fc1.\2"),
        (r"(blocks\.\d+\.mlp\.)w3\.(.+)", r"\1fc2.\2"),
        (r"(?!mask_token)(.+)", r"\1"),
    ]
    bare = {re.sub(r"^(backbone|model|vit)\.(?=blocks|patch|pos|cls)", "", k): v
            for k, v in tensors.items()}  # fmt: skip
    renamed, unexpected = _rename(bare, rules)
    dialect = "deit" if "dist_token" in renamed else "timm"
    return Translation(dialect, renamed, whole=False, unexpected=unexpected)


def _huggingface(tensors: Tensors) -> Translation:
    """ViT, DeiT and DINOv2 of transformers, up to version 4 and from 5 on."""
    start = r"^.*?(?=embeddings\.|encoder\.layer\.|layers\.\d|layernorm\.)"
    bare = {re.sub(start, "", name, count=1): value for name, value in tensors.items()}
    layer = r"(?:encoder\.layer|layers)\.(\d+)\."
    names = {"q": "query", "k": "key", "v": "value"}
    rules: list[_Rule] = [
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.distillation_token", "dist_token"),
        (r"embeddings\.register_tokens", "reg_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
        (layer + r"attention\.attention\.(query|key|value)\.(.+)", r"blocks.\1.attn.\2.\3"),
        (
            layer + r"attention\.([qkv])_proj\.(.+)",
            lambda m: f"blocks.{m[1]}.attn.{names[m[2]]}.{m[3]}",
        ),
        (layer + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
        (layer + r"(?:layernorm_before|norm1)\.(.+)", r"blocks.\1.norm1.\2"),
        (layer + r"(?:layernorm_after|norm2)\.(.+)", r"blocks.\1.norm2.\2"),
        (
            layer + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(.+)",
            r"blocks.\1.mlp.fc1.\2",
        ),
        (layer + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        (layer + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        (r"layernorm\.(.+)", r"norm.\1"),
    ]
    renamed, unexpected = _rename(bare, rules)
    return Translation("huggingface", _join_qkv(renamed), whole=False, unexpected=unexpected)


def _google(tensors: Tensors) -> Translation:
    bare = {re.sub(r"^(opt/target/|params/(img/)?)", "", k): v for k, v in tensors.items()}
    block = r"Transformer/encoderblock_(\d+)/"
    attn = block + r"MultiHeadDotProductAttention_\d/"
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    rules: list[_Rule] = [
        (r"cls", "cls_token"),
        (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed"),
        (r"embedding/(kernel|bias)", lambda m: f"patch_embed.proj.{leaf[m[1]]}"),
        (r"Transformer/encoder_norm/(scale|bias)", lambda m: f"norm.{leaf[m[1]]}"),
        (
            block + r"LayerNorm_(\d)/(scale|bias)",
            lambda m: f"blocks.{m[1]}.norm{1 if m[2] == '0' else 2}.{leaf[m[3]]}",
        ),
        (
            attn + r"(query|key|value|out)/(kernel|bias)",
            lambda m: f"blocks.{m[1]}.attn.{m[2]}.{leaf[m[3]]}",
        ),
        (
            block + r"MlpBlock_\d/Dense_(\d)/(kernel|bias)",
            lambda m: f"blocks.{m[1]}.mlp.fc{int(m[2]) + 1}.{leaf[m[3]]}",
        ),
    ]
    renamed, unexpected = _rename(bare, rules)
    plain: Tensors = {}
    for name, value in renamed.items():
        if name == "patch_embed.proj.weight":
            value = value.permute(3, 2, 0, 1)  # height, width, in, out -> out, in, height, width
        elif re.search(r"attn\.(query|key|value)\.weight", name):
            value = value.flatten(1).T
        elif name.endswith("attn.out.weight"):
            value = value.flatten(0, 1).T
        elif re.search(r"attn\.(query|key|value)\.bias", name):
            value = value.flatten()
        elif re.search(r"mlp\.fc\d\.weight", name):
            value = value.T
        plain[name.replace("attn.out.", "attn.proj.")] = value.contiguous()
    return Translation("google", _join_qkv(plain), whole=False, unexpected=unexpected)


def _join_qkv(tensors: Tensors) -> Tensors:
    """Concatenate separate query, key and value projections to timm's `qkv`."""
    joined = {}
    for name, value in tensors.items():
        if ".attn.query." in name:
            parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in tensors for part in parts):
                joined[name.replace(".query.", ".qkv.")] = torch.cat([tensors[p] for p in parts])
        elif not re.search(r"\.attn\.(key|value)\.", name):
            joined[name] = value
    return joined


def _resnet(tensors: Tensors) -> Translation:
    return Translation("resnet", tensors, whole=False)


_DIALECTS: list[tuple[str, Callable[[Tensors], Translation]]] = [
    (r"encoder\.(vit|net)\.", _own),
    (r"backbone\.layers\.\d+\.attn\.attn\.", _mmseg),
    (r"backbone\.blocks\.0\..*|backbone\.mla\.", _official),
    (r"(.*/)?Transformer/encoderblock_0/", _google),
    (r"(.*\.)?(encoder\.layer|layers)\.0\.(attention|layernorm_before)\.", _huggingface),
    (r"((backbone|model|vit)\.)?blocks\.0\.", _timm),
    (r"layer1\.0\.conv1\.", _resnet),
]
