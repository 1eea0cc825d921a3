"""Lines of a drafted `data.yaml` about images that are not read as RGB: bands, and their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from setr.data.survey_rows import DIM
from setr.errors import SetrError
from setr.images import read_image
from setr.reading.gdal import GdalFile

LOOKED_AT = 20
"""Images whose values are looked at."""
SIDE = 1024
"""Of the piece in the middle of each, in pixels."""
TAIL = 0.1
"""Percent of the values at either end that a range may leave out."""


def draft_bands(images: Sequence[Path]) -> list[str]:
    """What to write of these images: nothing where they can be read as RGB, or GDAL is missing.

    Of PNG files that is so but for those of 16 bits that would be nearly black.
    """
    first = images[0]
    is_tiff = first.suffix.lower() in (".tif", ".tiff")
    try:
        with GdalFile(first) as file:
            kinds = file.stored.kinds
    except SetrError:  # `setr doctor` says what is wrong
        return []
    if not is_tiff and kinds[0] != "uint16":
        return []
    count = len(kinds) if is_tiff or len(kinds) % 2 else len(kinds) - 1  # the last is alpha
    numbers = f"bands: {list(range(1, count + 1))}"
    if kinds[0] == "uint8" and _is_rgb(first):  # grey of 16 bits is read, too, but nearly black
        note = f"# images have {len(kinds)} bands, read as red, green and blue; to name them: "
        return [f"{note}{numbers}"] if len(kinds) > 3 else []
    lines = [f"{numbers}  # what is read of an image, a channel each"]
    if kinds[0] != "uint8" and not kinds[0].startswith("complex"):
        low, high, looked_at = _values(images, range(1, count + 1))
        if not is_tiff and high * 255 / 65535 >= DIM:
            return []
        ends = f"[{_rounded(low, math.floor)}, {_rounded(high, math.ceil)}]"
        seen = f"{TAIL:g} to {100 - TAIL:g} % of the values in {looked_at} images"
        lines.append(f"value_range: {ends}  # become 0 and 255; {seen}")
    return lines


def _is_rgb(image: Path) -> bool:
    try:
        read_image(image)
    except SetrError:
        return False
    return True


def _values(images: Sequence[Path], numbers: Sequence[int]) -> tuple[float, float, int]:
    """Where the values of these bands begin and end, and how many images were looked at."""
    chosen = np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int))
    ends = []
    for index in chosen:
        try:
            with GdalFile(images[index]) as file:
                (top, bottom), (left, right) = (
                    (max(0, (side - SIDE) // 2), min(side, (side + SIDE) // 2))
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


def _rounded(value: float, how: Callable[[float], int]) -> str:
    """A number as YAML takes it: whole ones where they are large."""
    if abs(value) >= 10:
        return str(how(value))
    return f"{value:.4f}".rstrip("0").rstrip(".")
