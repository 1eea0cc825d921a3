"""How mmsegmentation tests and normalises, from the configuration in its training checkpoints.

The configuration is Python text. It is parsed, never executed: calls of `dict`, and literals, are
read, and everything else is left out.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from setr.protocols import Protocol
from setr.reading.parsed import BROKEN

_LONGEST = 1_000_000
"""Longest text in characters that is parsed."""


def recorded_protocol(meta: Mapping[str, Any], usual: Protocol) -> Protocol:
    """The single-scale test that a checkpoint records; `usual` where it records none.

    Args:
        meta: values stored beside its tensors.
        usual: the published test of its model and data set.
    """
    values = _settings(meta)
    try:
        return _resized(values, _windows(values, usual))
    except BROKEN:  # a configuration of another form
        return usual


def recorded_normalisation(
    meta: Mapping[str, Any],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation for pixels 0 to 1, as recorded; None if they are not.

    mmsegmentation 1 calls them `data_preprocessor`, 0 `img_norm_cfg`, both for pixels 0 to 255.
    """
    values = _settings(meta)
    for place in (values.get("data_preprocessor"), values.get("img_norm_cfg")):
        try:
            mean, std = (tuple(float(v) / 255 for v in place[key]) for key in ("mean", "std"))  # type: ignore[index]
        except BROKEN:
            continue
        if len(mean) == len(std) and min(std) > 0:
            return mean, std
    return None


def _windows(values: dict[str, Any], usual: Protocol) -> Protocol:
    """`usual` with the windows of the model's `test_cfg`, or of that beside it."""
    model = values.get("model")
    places = (model.get("test_cfg") if isinstance(model, dict) else None, values.get("test_cfg"))
    test = next((t for t in places if isinstance(t, dict) and t.get("mode")), {})
    window, stride = usual.window, usual.stride
    if test.get("mode") == "whole":
        window = stride = None
    elif test.get("mode") == "slide":
        window, stride = _pair(test["crop_size"]), _pair(test["stride"])
    return dataclasses.replace(usual, window=window, stride=stride)


def _resized(values: dict[str, Any], usual: Protocol) -> Protocol:
    """`usual` with the sides of the test pipeline; its images have the scale of the last resize.

    A resize that does not keep the aspect ratio has no counterpart here.
    """
    for step in _steps(values.get("test_pipeline")):
        scale = step.get("img_scale" if step.get("type") == "MultiScaleFlipAug" else "scale")
        resize = step.get("type") in ("Resize", "MultiScaleFlipAug")
        if resize and scale and step.get("keep_ratio", True):
            short, long = sorted(_pair(scale))
            return dataclasses.replace(usual, short_side=short, long_side=long)
    return usual


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The dictionaries of a pipeline, in order, with those inside others behind them."""
    for step in pipeline if isinstance(pipeline, list) else ():
        if isinstance(step, dict):
            yield step
            yield from _steps(step.get("transforms"))


def _settings(meta: Mapping[str, Any]) -> dict[str, Any]:
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
