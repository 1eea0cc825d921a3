"""Renaming tensors by rules: the common part of all checkpoint layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]
WHOLE = ("official", "mmseg", "segmenter")
"""Dialects of whole models from elsewhere."""
Rule = tuple[str, str | Callable[[re.Match], str]]
"""A pattern for a whole name, and its replacement: a template, or a function of the match."""


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


def rename(tensors: Tensors, rules: list[Rule]) -> tuple[Tensors, list[str]]:
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
