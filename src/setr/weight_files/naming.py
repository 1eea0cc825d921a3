"""What all checkpoint layouts share: renaming by rules, counting parts, recorded settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
LIGHTLY_LINEAR = "lightly-linear"
"""Dialect of LightlyTrain's linear heads with their encoder."""
SMP = "dpt-smp"
"""Dialect of segmentation_models.pytorch's DPT."""
WHOLE = ("official", "mmseg", "segmenter", "eomt", "dpt", "dpt-transformers", SMP,
         "beit-transformers", LIGHTLY_LINEAR)  # fmt: skip
"""Dialects of whole models from other code bases."""
DELTA = "eomt-delta"
"""Dialect of EoMT on DINOv3 whose encoder is stored as the difference to DINOv3's weights."""
Rule = tuple[str, str | Callable[[re.Match], str]]
"""A regular expression for the full name, and a replacement: template or function of the match."""
CONV_BN = r"(?P<part>conv|bn)\.(?P<rest>.+)"
"""End of a pattern for the tensors of a convolution and its batch norm in mmsegmentation."""
_PARTS = {"conv": "0", "bn": "1"}
NORM_EPS = 1e-5
"""Epsilon of all batch norms: PyTorch's."""


@dataclass(frozen=True)
class Translation:
    """A checkpoint whose tensors have our names.

    Attributes:
        dialect: the layout that was recognised.
        tensors: tensors of a whole model (`encoder.…`, `neck.…`, `decoder.…`, `aux_heads.…`), or of
            an encoder with timm's names.
        unexpected: names in the file that have no counterpart.
        whole: whether decoder and auxiliary heads are included.
        filled: our names of tensors that the dialect does not store; they were added with the
            values it implies, such as zero biases.
        settings: settings of the architecture that tensors without a counterpart show.
    """

    dialect: str
    tensors: Tensors
    unexpected: list[str] = field(default_factory=list)
    whole: bool = False
    filled: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def rename(tensors: Tensors, rules: list[Rule], start: str = "") -> tuple[Tensors, list[str]]:
    """Rename tensors by the first rule that matches the whole name behind `start`.

    Returns:
        The renamed tensors, and the names that no rule matches or that begin otherwise.
    """
    renamed, unexpected = {}, []
    for name, value in tensors.items():
        for pattern, target in rules if name.startswith(start) else ():
            if found := re.fullmatch(pattern, name.removeprefix(start)):
                renamed[found.expand(target) if isinstance(target, str) else target(found)] = value
                break
        else:
            unexpected.append(name)
    return renamed, unexpected


def numbered(target: str | Callable[[re.Match], str]) -> Callable[[re.Match], str]:
    """Replacement for a pattern that ends in `CONV_BN`, whose parts have numbers here."""

    def name(found: re.Match) -> str:
        layer = found.expand(target) if isinstance(target, str) else target(found)
        return f"{layer}.{_PARTS[found['part']]}.{found['rest']}"

    return name


def start_of(tensors: Tensors, key: str) -> str:
    """What stands before the first name that matches a regular expression; empty without any."""
    found = (re.fullmatch(rf"(.*\.)?{key}", name) for name in tensors)
    return next((match[1] or "" for match in found if match), "")


def count_parts(tensors: Tensors, pattern: str) -> int:
    """Number of numbered parts, counted from 0.

    Args:
        tensors: tensors of the parts, among others.
        pattern: beginning of their names; its first group is the number.
    """
    found = {int(m[1]) for name in tensors if (m := re.match(pattern, name))}
    return max(found) + 1 if found else 0


def num_blocks(tensors: Tensors) -> int:
    """Number of a ViT's blocks among tensors with our names; 0 without any."""
    return count_parts(tensors, r"encoder\.vit\.blocks\.(\d+)\.")


def identity_norm(channels: int, prefix: str) -> Tensors:
    """The tensors of a batch norm that changes nothing in eval mode, whose names begin so."""
    one = torch.ones(channels)
    named = {
        "weight": (one + NORM_EPS).sqrt(),
        "bias": torch.zeros_like(one),
        "running_mean": torch.zeros_like(one),
        "running_var": one,
        "num_batches_tracked": torch.tensor(0),
    }
    return {prefix + name: value for name, value in named.items()}


def with_batch_axis(tensors: Tensors) -> Tensors:
    """Positions (N, C) and a class token (C), if there is one, as timm has them: (1, N, C)."""
    named = tensors | {"pos_embed": tensors["pos_embed"][None]}
    if "cls_token" in named:
        named["cls_token"] = named["cls_token"][None, None]
    return named


def part_of(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The dictionary that these keys lead to, one inside another; empty where there is none."""
    place: Any = values
    for name in names:
        place = place.get(name) if isinstance(place, Mapping) else None
    return place if isinstance(place, dict) else {}


def recorded(meta: Mapping[str, Any], key: str) -> Any:
    """A number, tuple, list or quoted word stored in a checkpoint, or None.

    Training checkpoints of mmengine hold their configuration as text, which is searched.
    """
    if key in meta:
        return meta[key]
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str):
        return None
    found = re.search(rf"\b{key}\s*=\s*(\d+|[(\[][\d,\s]+[)\]]|'\w+'|\"\w+\")", text)
    with suppress(SyntaxError, ValueError):  # such as (1,,2)
        return ast.literal_eval(found[1]) if found else None
    return None
