"""Drafts `bands` and `value_range` in `data.yaml` for images that cannot be read as RGB."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from setr.data.sampling import evenly_spaced
from setr.data.survey_rows import DIM
from setr.errors import SetrError
from setr.images import read_image
from setr.reading.gdal import GdalFile

SAMPLED_IMAGES = 20
"""Images from which the range of values is measured."""
SAMPLED_SIDE = 1024
"""Side of the square in the middle of each image that is read, in pixels."""
TAIL = 0.1
"""Percentage of the values at either end that a range may leave out."""


def draft_bands(images: Sequence[Path]) -> list[str]:
    """Lines for `data.yaml`; none if the images can be read as RGB, or GDAL is missing.

    PNG files only need them if they have 16 bits and would be nearly black.
    """
    first = images[0]
    is_tiff = first.suffix.lower() in (".tif", ".tiff")
    try:
        with GdalFile(first) as file:
            kinds = file.stored.kinds
    except SetrError:  # `setr doctor` reports the reason
        return []
    if not is_tiff and kinds[0] != "uint16":
        return []
    count = len(kinds) if is_tiff or len(kinds) % 2 else len(kinds) - 1  # without alpha
    numbers = f"bands: {list(range(1, count + 1))}"
    if kinds[0] == "uint8" and _is_rgb(first):  # 16-bit grey is read, too, but often nearly black
        note = f"# images have {len(kinds)} bands, read as red, green and blue; to name them: "
        return [f"{note}{numbers}"] if len(kinds) > 3 else []
    lines = [f"{numbers}  # bands to read, one channel each"]
    if kinds[0] != "uint8" and not kinds[0].startswith("complex"):
        low, high, sampled = _value_range(images, range(1, count + 1))
        if not is_tiff and high * 255 / 65535 >= DIM:
            return []
        ends = f"[{_rounded(low, math.floor)}, {_rounded(high, math.ceil)}]"
        source = f"percentiles {TAIL:g} and {100 - TAIL:g} of the values in {sampled} images"
        lines.append(f"value_range: {ends}  # become 0 and 255; {source}")
    return lines


def _is_rgb(image: Path) -> bool:
    try:
        read_image(image)
    except SetrError:
        return False
    return True


def _value_range(images: Sequence[Path], numbers: Sequence[int]) -> tuple[float, float, int]:
    """Low and high value of these bands, and the number of images they were measured on."""
    ends = []
    for index in evenly_spaced(len(images), SAMPLED_IMAGES):
        try:
            with GdalFile(images[index]) as file:
                (top, bottom), (left, right) = (
                    (max(0, (side - SAMPLED_SIDE) // 2), min(side, (side + SAMPLED_SIDE) // 2))
                    for side in file.stored.shape
                )
                values = file.read(numbers, (top, bottom), (left, right))
                values = values[:, file.has_data((top, bottom), (left, right))]
        except SetrError:
            continue
        values = values[np.isfinite(values)]
        if values.size:
            ends.append(np.percentile(values, (TAIL, 100 - TAIL)))
    low, high = (min(a for a, _ in ends), max(b for _, b in ends)) if ends else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-3)), len(ends)


def _rounded(value: float, to_int: Callable[[float], int]) -> str:
    """A number for YAML: an integer from 10 on, else four decimals."""
    if abs(value) >= 10:
        return str(to_int(value))
    return f"{value:.4f}".rstrip("0").rstrip(".")
