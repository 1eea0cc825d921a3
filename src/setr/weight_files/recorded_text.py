"""The configuration in mmsegmentation's training checkpoints.

It is Python text. It is parsed, never executed: calls of `dict`, and literals, are read, and
everything else is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from setr.reading.parsed import BROKEN
from setr.weight_files.naming import part_of

_LONGEST = 1_000_000
"""Longest text in characters that is parsed."""


def settings_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The assignments of a configuration; none if there is no readable text."""
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str) or len(text) > _LONGEST:
        return {}
    try:
        body = ast.parse(text).body
        return {
            target.id: _value(statement.value)
            for statement in body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, MemoryError, *BROKEN):
        return {}


def reads_bgr(values: Mapping[str, Any]) -> bool:
    """Whether the network reads blue, green and red, as OpenCV decodes images.

    mmsegmentation 1 turns the channels around only if its `data_preprocessor` says so, 0 unless its
    `img_norm_cfg` says otherwise. tifffile decodes red, green and blue.

    Args:
        values: of the configuration.
    """
    place = next(iter(normalisations_of(values)), {})
    if place.get("type") == "SegDataPreProcessor":
        is_turned = bool(place.get("bgr_to_rgb") or place.get("rgb_to_bgr"))
    else:
        is_turned = not place or place.get("to_rgb") is not False
    steps = [*steps_of(values.get("test_pipeline"))]
    if any(step.get("imdecode_backend") == "tifffile" for step in steps):
        return is_turned and bool(place)
    return not is_turned


def normalisations_of(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the normalisation can be recorded."""
    places = (("data_preprocessor",), ("model", "data_preprocessor"), ("img_norm_cfg",))
    return [found for place in places if (found := part_of(values, *place))]


def steps_of(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The dictionaries of a pipeline, in order, with those inside others behind them."""
    for step in pipeline if isinstance(pipeline, list) else ():
        if isinstance(step, dict):
            yield step
            yield from steps_of(step.get("transforms"))


def _value(node: ast.expr) -> Any:
    """A literal, or a `dict(…)` of such; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict):
        return {
            key.value: _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(part) for part in node.elts]
    return node.value if isinstance(node, ast.Constant) else None
