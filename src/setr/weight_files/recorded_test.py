"""How mmsegmentation tests and normalises, from the configuration in its training checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from setr.protocols import Protocol
from setr.reading.parsed import BROKEN
from setr.weight_files.naming import part_of
from setr.weight_files.recorded_text import normalisations_of, reads_bgr, settings_of, steps_of


def recorded_protocol(meta: Mapping[str, Any], usual: Protocol) -> Protocol:
    """The single-scale test that a checkpoint records; `usual` where it records none.

    Args:
        meta: values stored beside its tensors.
        usual: the published test of its model and data set.
    """
    values = settings_of(meta)
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
    values = settings_of(meta)
    for place in normalisations_of(values):
        given = place
        if place.get("type") == "SegDataPreProcessor" and place.get("mean") is None:
            given = {"mean": [0] * 3, "std": [1] * 3}  # pixels as they are
        try:
            mean, std = (tuple(float(v) / 255 for v in given[key]) for key in ("mean", "std"))
        except BROKEN:
            continue
        if len(mean) == len(std) and min(std) > 0:
            is_turned = len(mean) == len("bgr") and reads_bgr(values)
            return (mean[::-1], std[::-1]) if is_turned else (mean, std)
    return None


def squashed_size(meta: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) to which the recorded test squashes images, whatever their aspect ratio."""
    try:
        size, kept = _resize(settings_of(meta)) or (None, True)
    except BROKEN:
        return None
    return None if kept else size


def _windows(values: dict[str, Any], usual: Protocol) -> Protocol:
    """`usual` with the windows of the model's `test_cfg`, or of that beside it."""
    places = part_of(values, "model", "test_cfg"), part_of(values, "test_cfg")
    test = next((place for place in places if place.get("mode")), {})
    window, stride = usual.window, usual.stride
    if test.get("mode") == "whole":
        window = stride = None
    elif test.get("mode") == "slide":
        window, stride = _pair(test["crop_size"]), _pair(test["stride"])
    return dataclasses.replace(usual, window=window, stride=stride)


def _resized(values: dict[str, Any], usual: Protocol) -> Protocol:
    """`usual` with the sides of the test pipeline.

    Where that squashes images to one size, they keep their aspect ratio here, and the short side is
    that of this size.
    """
    size, kept = _resize(values) or (None, True)
    if size is None:
        return usual
    short, long = sorted(size)
    return dataclasses.replace(usual, short_side=short, long_side=long if kept else None)


def _resize(values: dict[str, Any]) -> tuple[tuple[int, int], bool] | None:
    """The scale of the test pipeline's first resize, and whether it keeps the aspect ratio."""
    steps = [*steps_of(values.get("test_pipeline"))]
    resize = next((step for step in steps if step.get("type") == "Resize"), None)
    outer = next((step for step in steps if step.get("type") == "MultiScaleFlipAug"), None)
    if outer is not None:  # version 0
        scale, kept = outer.get("img_scale"), (resize or {}).get("keep_ratio", True)
    elif resize is not None:
        scale, kept = resize.get("scale"), resize.get("keep_ratio", False)
    else:
        return None
    return (_pair(scale), bool(kept)) if scale else None


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)
