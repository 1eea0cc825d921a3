"""GeoTIFF files: pixels by windows, and label rasters with the same georeference (extra `geo`).

A raster may be larger than memory: pixels are read where a window of the model needs them, and
labels are written block by block.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from setr.bands import Bands, Range, as_bytes, fitting_ranges
from setr.errors import SetrError, UsageError
from setr.labels import IGNORE, Labels
from setr.prediction.ground import Georeference
from setr.reading.gdal import CACHE_BYTES, GdalFile, gdal_reason, import_gdal
from setr.writing import make_folder, part_of

RASTER_KINDS = {"mask": ".tif", "confidence": "_confidence.tif"}
"""Kinds of output that are rasters where the input is one, with the ending of the file name."""
NODATA = {"mask": IGNORE, "ids": IGNORE, "confidence": 0}
"""The value of pixels without data in each kind; no chosen class has a probability near 0."""


class Raster:
    """An open GeoTIFF, read by windows; a context manager.

    Args:
        bands: numbers of the bands from 1, one for each channel; with three channels, also a
            single one, which is shown as grey. By default the first ones, or of fewer than three
            only the first, with its colour table if it has one and no range is given.
        value_range: the values that become 0 and 255, of all bands or of each; by default the whole
            range of 8 and 16 bits.
        channels: of the model that will see it.

    Attributes:
        shape: (H, W).
        geo: its place on the map.

    Raises:
        SetrError: extra `geo` missing, unreadable, no such band, or values of no known range.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        bands: tuple[int, ...] = (),
        value_range: Range | tuple[Range, ...] | None = None,
        channels: int = 3,
    ) -> None:
        self.name, self.channels = os.fspath(path), channels
        self._file = GdalFile(self.name, "GeoTIFF")
        stored, place = self._file.stored, self._file.file
        first = tuple(range(1, channels + 1))
        self.bands = bands or (first if channels != 3 or len(stored.kinds) >= 3 else (1,))
        shown = self.bands == (1,) and not bands and value_range is None and channels == 3
        self._palette = self._file.palette() if shown else None
        self.shape: tuple[int, int] = stored.shape
        try:
            self.geo = Georeference(_crs(place.crs), tuple(place.transform)[:6])
            self._ranges = self._checked(stored.kinds, value_range)
        except SetrError:
            self.__exit__()
            raise

    def _checked(
        self, kinds: tuple[str, ...], value_range: Range | tuple[Range, ...] | None
    ) -> list[Range]:
        wrong = [band for band in self.bands if not 1 <= band <= len(kinds)]
        if wrong or not fits_channels(self.bands, self.channels):
            given, count = ",".join(map(str, self.bands)), len(kinds)
            number = "one or three" if self.channels == 3 else f"{self.channels}"
            has = f"{number} of 1 to {count}"
            raise SetrError(f"{self.name}: bands {given}: give {has}, the bands of the file")
        ranges = value_range or ()
        pairs = ranges if not ranges or isinstance(ranges[0], tuple) else (ranges,)
        bands = Bands(self.bands, pairs)
        return fitting_ranges(self.name, kinds, bands.numbers, bands.ranges)

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.__exit__()

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Pixels of a window as uint8 (h, w, channels).

        Raises:
            SetrError: the file is cut off or broken there.
        """
        values = self._file.read(self.bands, rows, columns)
        if self._palette is not None:
            return self._palette[values[0]]
        image = as_bytes(values, self._ranges)
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 < self.channels else image

    def has_data(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Where a window holds data (h, w) bool: not `nodata`, not transparent, not masked."""
        return self._file.has_data(rows, columns, self.bands)


def fits_channels(bands: tuple[int, ...], channels: int) -> bool:
    """Whether these bands fill a model's channels; a single band fills three, as grey."""
    return len(bands) == channels or (channels == 3 and len(bands) == 1)


class RasterWriter:
    """Writes a label or grey raster with a georeference; a context manager.

    The file appears when it is complete; an exception in the block leaves none.

    Args:
        shape: (H, W).
        kind: of `kinds.RASTER_PICTURES`; says which value is `nodata`, `NODATA`.
        labels: if given, values are class ids, shown in the classes' colours.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        geo: Georeference,
        kind: str,
        labels: Labels | None = None,
    ) -> None:
        self.path = path
        self._gdal = import_gdal(str(path))
        self._part = part_of(path)
        self._profile = {
            "driver": "GTiff",
            "dtype": "uint8",
            "count": 1,
            "height": shape[0],
            "width": shape[1],
            "crs": geo.crs or None,
            "transform": self._gdal.Affine(*geo.transform),
            "nodata": NODATA[kind],
            "tiled": True,
            "blockxsize": 512,
            "blockysize": 512,
            "compress": "deflate",
            "bigtiff": "if_safer",
        }
        self._labels = labels

    def __enter__(self) -> RasterWriter:
        make_folder(self.path.parent)
        self._env = self._gdal.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_PAM_ENABLED=False)
        self._env.__enter__()
        try:
            self._file = self._gdal.open(self._part, "w", **self._profile)
            if self._labels is not None:
                colours = {i: (*map(int, c), 255) for i, c in enumerate(self._labels.colours)}
                self._file.write_colormap(1, {**colours, IGNORE: (0, 0, 0, 0)})
                names = {f"class_{i}": name for i, name in enumerate(self._labels.classes)}
                self._file.update_tags(**names)
        except Exception as error:
            self._env.__exit__(None, None, None)
            self._part.unlink(missing_ok=True)
            raise _unwritable(self.path, error) from None
        return self

    def write(self, values: np.ndarray, row: int, column: int) -> None:
        """Values uint8 (h, w) with their upper left corner at a place."""
        h, w = values.shape
        try:
            self._file.write(values, 1, window=((row, row + h), (column, column + w)))
        except Exception as error:
            raise _unwritable(self.path, error) from None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._file.close()
            if kind is None:
                os.replace(self._part, self.path)
        except Exception as problem:
            raise _unwritable(self.path, problem) from None
        finally:
            self._env.__exit__(None, None, None)
            self._part.unlink(missing_ok=True)


def parse_bands(text: str) -> tuple[int, ...]:
    """`4,3,2` as the `bands` of a `Raster`; nothing is none.

    Raises:
        SetrError: other than numbers from 1.
    """
    bands = _numbers(text, int)
    if text and not (bands and min(bands) >= 1):
        raise UsageError(f"--bands {text}: give numbers from 1, such as 4,3,2")
    return tuple(bands)


def parse_range(text: str) -> tuple[float, float] | None:
    """`0,3000` as the `value_range` of a `Raster`; nothing is none.

    Raises:
        SetrError: other than two finite numbers, the lower one first.
    """
    values = _numbers(text, float)
    if text and not (len(values) == 2 and -math.inf < values[0] < values[1] < math.inf):
        raise UsageError(f"--value-range {text}: give low, then high, such as 0,3000")
    return (values[0], values[1]) if values else None


def _numbers(text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Numbers joined with commas; none where one is wrong."""
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        return []


def _crs(crs: Any) -> str:
    """`EPSG:32633` where the system is a numbered one, else WKT, empty without any."""
    if crs is None:
        return ""
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.to_wkt()


def _unwritable(path: Path, error: Exception) -> SetrError:
    return SetrError(f"{path}: cannot write: {gdal_reason(error):.120}")
