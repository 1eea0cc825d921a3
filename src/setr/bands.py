"""Multi-band images: any number of bands of 8 or 16 bits or floats, as uint8 (H, W, C).

Used instead of `images.py`'s RGB by data sets and models that name bands. TIFF files are read by
windows with GDAL (extra `geo`). Formats that Pillow returns unchanged (8-bit grey and colour,
16-bit grey) are read by Pillow, and also such TIFF files without GDAL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ImageOps

from setr.arguments.typed import check_fields
from setr.errors import SetrError
from setr.images import check_whole, read_image
from setr.reading.decode import check_png_rows, orientation
from setr.reading.gdal import GdalFile, Stored, gdal_driver, has_gdal
from setr.reading.lazy_image import LazyImage, bounds
from setr.reading.pillow import (
    MAX_PIXELS,
    Source,
    note_first,
    opened,
    require_pixels,
    source_name,
)

_FULL = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
_ROWS = 256
"""Rows that are scaled to bytes at a time."""
_AS_STORED = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B")
"""Raw pixel modes that Pillow returns unchanged."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Bands:
    """The bands that a data set or a model reads from files, in the order of its channels.

    Args:
        numbers: of the bands, from 1.
        ranges: (low, high) values that are mapped to 0 and 255: one pair for all bands, or one for
            each; empty for the full range of 8- and 16-bit values.

    Raises:
        SetrError: numbers below 1, a wrong number of ranges, or an empty range.
    """

    numbers: tuple[int, ...]
    ranges: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.numbers or min(self.numbers) < 1:
            raise SetrError(f"bands {list(self.numbers)}: give numbers from 1, as [1, 2, 3, 4]")
        if len(self.ranges) not in (0, 1, len(self.numbers)):
            raise SetrError(
                f"value_range: {len(self.ranges)} ranges for {len(self.numbers)} bands; give one "
                "for all, as [0, 3000], or one for each"
            )
        for low, high in self.ranges:
            if not -math.inf < low < high < math.inf:
                raise SetrError(f"value range {low:g} to {high:g}: give low, then high")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Bands | None:
        """The keys `bands` and `value_range` of a data.yaml or config.json; None without bands.

        Raises:
            SetrError: not lists of numbers, or a range without bands.
        """
        numbers, given = values.get("bands"), values.get("value_range")
        if numbers is None:
            if given is not None:
                raise SetrError("value_range: needs bands; add bands: [1, 2, 3]")
            return None
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise SetrError(f"bands {numbers!r}: give numbers from 1, as [1, 2, 3, 4]")
        pairs = given or []
        if isinstance(pairs, list) and not any(isinstance(pair, list) for pair in pairs):
            pairs = [pairs] if pairs else []
        if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            raise SetrError(f"value_range {given!r}: give low and high, as [0, 3000]")
        return cls(tuple(numbers), tuple((float(low), float(high)) for low, high in pairs))

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `of`."""
        ranges = [list(pair) for pair in self.ranges]
        given = {"value_range": ranges[0] if len(ranges) == 1 else ranges} if ranges else {}
        return {"bands": list(self.numbers), **given}

    def __str__(self) -> str:
        ranges = ", ".join(f"{low:g} to {high:g}" for low, high in self.ranges) or "8 or 16 bits"
        return f"bands {', '.join(map(str, self.numbers))} of {ranges}"


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)
    )


def fitting_ranges(
    name: str, kinds: Sequence[str], numbers: Sequence[int], ranges: Sequence[Range]
) -> list[Range]:
    """The range (low, high) that is mapped to 0 to 255 for each of these bands of a file.

    Args:
        name: of the file, for errors.
        kinds: dtype names of all bands of the file.
        numbers: of the bands, from 1.
        ranges: of the user: none, one for all, or one for each band.

    Raises:
        SetrError: complex values, or other values without a default range.
    """
    fitting = []
    for i, number in enumerate(numbers):
        kind = kinds[number - 1]
        if kind.startswith("complex"):
            raise SetrError(f"{name}: has {kind} values; store magnitude and phase as two bands")
        pair = ranges[i if len(ranges) > 1 else 0] if ranges else _FULL.get(kind)
        if pair is None:
            raise SetrError(f"{name}: has {kind} values; give the range that becomes 0 to 255")
        fitting.append(pair)
    return fitting


def as_bytes(values: np.ndarray, ranges: Sequence[Range]) -> np.ndarray:
    """Values of bands (C, h, w) scaled to uint8 (h, w, C); NaN becomes 0."""
    C, h, w = values.shape
    if values.dtype == np.uint8 and all(pair == _FULL["uint8"] for pair in ranges):
        return np.ascontiguousarray(values.transpose(1, 2, 0))
    low = np.array([a for a, _ in ranges], np.float32)[:, None, None]
    factor = np.array([255 / (b - a) for a, b in ranges], np.float32)[:, None, None]
    found = np.empty((h, w, C), np.uint8)
    for top in range(0, h, _ROWS):  # floats of a whole image would take several times its memory
        scaled = (values[:, top : top + _ROWS].astype(np.float32) - low) * factor
        block = np.nan_to_num(np.clip(np.rint(scaled), 0, 255)).astype(np.uint8)
        found[top : top + _ROWS] = block.transpose(1, 2, 0)
    return found


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image uint8 (H, W, C) as RGB for display: the first three bands, or the first as grey."""
    if image.shape[2] < 3:
        return np.repeat(image[..., :1], 3, axis=2)
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., :3])


# --- reading by GDAL or Pillow --------------------------------------------------------------------


class BandImage:
    """A multi-band image that is read lazily: `image[a:b, c:d]` is uint8 (h, w, C).

    Args:
        source: a path, or the bytes of a file.
        bands: their numbers and ranges.
        max_pixels: larger images are refused by their header.

    Attributes:
        shape: (H, W, C).

    Raises:
        SetrError: unreadable, fewer bands than named, values without a default range, too large,
            or a file that needs the extra `geo`.
    """

    def __init__(self, source: Source, bands: Bands, *, max_pixels: int = MAX_PIXELS) -> None:
        self.name, self.source, self.bands = source_name(source), source, bands
        self._values: np.ndarray | None = None
        self.turned = False
        if _use_pillow(source, max_pixels):
            self._values, self.turned = _read_with_pillow(source, max_pixels)
            stored = Stored(self._values.shape[1:], (str(self._values.dtype),) * len(self._values))
        else:
            with GdalFile(source) as file:
                stored = file.stored
                if file.file.subdatasets:
                    note_first(self.name)
        (H, W), count = stored.shape, len(stored.kinds)
        require_pixels(self.name, (W, H), max_pixels)
        if max(bands.numbers) > count:
            has = "one band" if count == 1 else f"{count} bands"
            given = ",".join(map(str, bands.numbers))
            raise SetrError(f"{self.name}: has {has}; bands {given} were requested")
        self.ranges = fitting_ranges(self.name, stored.kinds, bands.numbers, bands.ranges)
        self.shape: tuple[int, ...] = (H, W, len(bands.numbers))

    def __getitem__(self, place: slice | tuple[slice, slice]) -> np.ndarray:
        """Pixels of a slice of rows, or of rows and columns; steps are not supported."""
        (top, bottom), (left, right) = bounds(place, self.shape)
        if self._values is None:
            with GdalFile(self.source) as file:
                values = file.read(self.bands.numbers, (top, bottom), (left, right))
        else:
            values = self._values[[n - 1 for n in self.bands.numbers], top:bottom, left:right]
        return as_bytes(values, self.ranges)


def _use_pillow(source: Source, max_pixels: int) -> bool:
    """Whether to read a file with Pillow rather than GDAL.

    Raises:
        SetrError: neither can read it.
    """
    is_tiff = gdal_driver(source) == "GTiff"
    if is_tiff and has_gdal():
        return False
    try:
        with opened(source, max_pixels) as image:
            kind = image.tile[0][3] if image.tile else None
            stored = kind[0] if isinstance(kind, tuple) else kind
            if stored in _AS_STORED and not (is_tiff and orientation(image) != 1):
                return True
            form, mode = image.format, image.mode
    except SetrError:
        if is_tiff:  # Pillow supports few kinds of TIFF
            return False
        raise
    if is_tiff or (form == "PNG" and mode != "P"):
        return False
    raise SetrError(
        f"{source_name(source)}: bands cannot be read from {form} with {mode} pixels; save it as "
        "TIFF or PNG"
    )


def _read_with_pillow(source: Source, max_pixels: int) -> tuple[np.ndarray, bool]:
    """All bands (n, H, W) uint8 or uint16, upright, and whether EXIF orientation was applied."""
    with opened(source, max_pixels) as image:
        check_png_rows(image, source)
        turned = orientation(image) != 1
        values = np.asarray(ImageOps.exif_transpose(image))
    values = values.astype(np.uint16) if values.dtype != np.uint8 else values
    return (values[None] if values.ndim == 2 else values.transpose(2, 0, 1)), turned


# --- RGB or bands ---------------------------------------------------------------------------------


def open_pixels(source: Source, bands: Bands | None) -> LazyImage | BandImage:
    """A lazily decoded image uint8 (H, W, C) of these bands, or of RGB without bands."""
    bands = bands or _sixteen_bits(source)
    return LazyImage(source) if bands is None else BandImage(source, bands)


def read_pixels(source: Source, bands: Bands | None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image uint8 (H, W, C) of these bands, or of RGB without bands; see `images.read_image`."""
    bands = bands or _sixteen_bits(source)
    if bands is None:
        return read_image(source, max_pixels=max_pixels)
    return BandImage(source, bands, max_pixels=max_pixels)[:]


def check_pixels(
    source: Source, bands: Bands | None, *, max_pixels: int = MAX_PIXELS
) -> tuple[tuple[int, int], bool]:
    """Check header and end of an image file; see `images.check_whole`."""
    bands = bands or _sixteen_bits(source)
    if bands is None:
        return check_whole(source, max_pixels=max_pixels)
    image = BandImage(source, bands, max_pixels=max_pixels)
    H, W = image.shape[:2]
    image[H - 1 : H]
    return (H, W), image.turned


def _sixteen_bits(source: Source) -> Bands | None:
    """Bands of a 16-bit RGB TIFF file, which Pillow truncates to 8 bits or cannot read."""
    if gdal_driver(source) != "GTiff" or not has_gdal():
        return None
    try:
        with GdalFile(source) as file:
            kinds = file.stored.kinds
    except SetrError:  # reading it will report the reason
        return None
    return Bands((1, 2, 3)) if kinds == ("uint16",) * 3 else None
