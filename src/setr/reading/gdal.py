"""Windowed reading of TIFF and PNG files with GDAL (extra `geo`).

Whether a TIFF file is georeferenced is read from its tags, without GDAL.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from setr._extras import import_extra
from setr.errors import SetrError, first_line
from setr.reading.lazy_image import bounds
from setr.reading.pillow import Source, first_bytes, require_stored, source_name, unreadable

CACHE_BYTES = 64 << 20
"""GDAL's block cache."""
LARGEST_TILE = 1 << 24
"""Pixels of a tile that may be larger than its image; a small file may claim gigabytes."""
STRIP = 512
"""Rows read at once by `GdalFile.has_data`, so that each block is decoded only once."""
_DRIVERS = {b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
            b"\x89PNG": "PNG"}  # fmt: skip
_GEO_TAGS = (33550, 33922, 34264, 34735)  # pixel scale, tie points, transformation, GeoKeys


class Stored(NamedTuple):
    """Size (H, W) of a file, and the NumPy dtype name of each band."""

    shape: tuple[int, int]
    kinds: tuple[str, ...]


class GdalFile:
    """A TIFF or PNG file opened with GDAL; a context manager.

    Args:
        source: a path, or the bytes of a file.
        kind: what error messages call the file.
        cache: bytes of GDAL's block cache while the file is open.

    Raises:
        SetrError: extra `geo` missing, unreadable, or another format.
    """

    def __init__(self, source: Source, kind: str = "image", cache: int = CACHE_BYTES) -> None:
        self.name, self.kind = source_name(source), kind
        driver = gdal_driver(source)
        gdal = import_gdal(self.name)
        if driver is None:
            raise SetrError(f"{self.name}: bands are read from TIFF and PNG files only")
        self._env = gdal.Env(GDAL_CACHEMAX=cache, GDAL_PAM_ENABLED=False)
        self._env.__enter__()
        # never `scheme:name`, which rasterio takes for an address
        file = io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(self.name)
        try:
            self.file = gdal.open(file, driver=driver)
        except Exception as error:
            self._env.__exit__(None, None, None)
            raise self._unreadable(error) from None
        self.stored = Stored(self.file.shape, tuple(self.file.dtypes))
        height, width = max(self.file.block_shapes, key=math.prod)
        if height * width > max(math.prod(self.stored.shape), LARGEST_TILE):
            self.__exit__()
            raise SetrError(
                f"{self.name}: an image of {self.stored.shape[1]}x{self.stored.shape[0]} pixels in "
                f"tiles of {width}x{height}, which are decoded whole; save it with smaller ones"
            )

    def __enter__(self) -> GdalFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        self._env.__exit__(None, None, None)

    def read(
        self, numbers: Sequence[int], rows: tuple[int, int], columns: tuple[int, int]
    ) -> np.ndarray:
        """Values of bands (C, h, w) in a window.

        Raises:
            SetrError: the file is truncated or corrupt there.
        """
        try:
            values: np.ndarray = self.file.read(list(numbers), window=(rows, columns))
        except Exception as error:
            raise self._unreadable(error) from None
        return values

    def has_data(
        self, rows: tuple[int, int], columns: tuple[int, int], numbers: Sequence[int] = ()
    ) -> np.ndarray:
        """Valid pixels of a window (h, w) bool: not `nodata`, not transparent, not masked.

        Bands in `numbers` are never taken as transparency: files with four 8-bit bands mark the
        fourth as alpha by default, even where it is near infrared.
        """
        strips = [(top, min(top + STRIP, rows[1])) for top in range(*rows, STRIP)]
        return np.concatenate([self._strip_has_data(strip, columns, numbers) for strip in strips])

    def _strip_has_data(
        self, rows: tuple[int, int], columns: tuple[int, int], numbers: Sequence[int]
    ) -> np.ndarray:
        window, colours = (rows, columns), self.file.colorinterp
        alpha = {i for i, colour in enumerate(colours, 1) if colour.name == "alpha"}
        if len(colours) == 4 and colours[0].name == "red":
            alpha.add(4)  # `dataset_mask` uses only this band of such files
        try:
            if alpha & set(numbers):
                return np.asarray(self.file.read_masks(window=window)).max(axis=0) > 0
            return np.asarray(self.file.dataset_mask(window=window) > 0)
        except Exception as error:
            raise self._unreadable(error) from None

    def palette(self) -> np.ndarray | None:
        """Colour table (256, 3) uint8 of the first band, if it has one."""
        if self.stored.kinds[0] != "uint8" or self.file.colorinterp[0].name != "palette":
            return None
        colours = np.zeros((256, 3), np.uint8)
        for value, (*colour, _) in self.file.colormap(1).items():
            colours[value] = colour
        return colours

    def _unreadable(self, error: Exception) -> SetrError:
        return SetrError(f"{self.name}: broken {self.kind} file ({gdal_reason(error):.120})")


def import_gdal(name: str) -> Any:
    """Import rasterio, or raise a `SetrError` that says how to install it."""
    rasterio = import_extra("rasterio", "geo", f"{name}: reading GeoTIFF files and bands")
    for kind in ("NotGeoreferencedWarning", "NodataShadowWarning"):
        warnings.simplefilter("ignore", getattr(rasterio.errors, kind))
    return rasterio


def gdal_reason(error: Exception) -> str:
    """GDAL's error message, in one line."""
    return first_line(error.__cause__ or error)


def has_gdal() -> bool:
    """Whether the extra `geo` is installed."""
    try:
        import_gdal("")
    except SetrError:
        return False
    return True


def is_georeferenced(path: Any) -> bool:
    """Whether this is the path of a TIFF file with georeferencing tags."""
    if not isinstance(path, str | os.PathLike):
        return False
    if os.path.splitext(os.fspath(path))[1].lower() not in (".tif", ".tiff"):
        return False
    try:
        require_stored(path)
        with open(path, "rb") as file:
            return _has_geo_tags(file)
    except OSError:
        return False


def _has_geo_tags(file: IO[bytes]) -> bool:
    try:
        head = file.read(16)
        tags = ImageFileDirectory_v2(head if head[2:3] == b"+" else head[:8])  # +: BigTIFF
        file.seek(tags.next)
        tags.load(file)
        return any(tag in tags for tag in _GEO_TAGS)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return False  # not a TIFF file; reading it will report the reason


class Gaps:
    """Pixels without data in a GeoTIFF: `gaps[a:b, c:d]` (h, w) bool reads that window.

    Args:
        source: a path, or the bytes of a file.
        numbers: bands that are read, none of which is transparency.
        shape: (H, W) of the file.
    """

    def __init__(self, source: Source, numbers: Sequence[int], shape: tuple[int, int]) -> None:
        self.source, self.numbers, self.shape = source, numbers, shape

    def __getitem__(self, place: slice | tuple[slice, slice]) -> np.ndarray:
        rows, columns = bounds(place, self.shape)
        with GdalFile(self.source) as file:
            return ~file.has_data(rows, columns, self.numbers)


def without_data(source: Source, numbers: Sequence[int]) -> Gaps | None:
    """Pixels without data in a GeoTIFF; None if all are valid, or for other files.

    Args:
        source: a path, or the bytes of a file.
        numbers: bands that are read, none of which is transparency; empty for all bands.
    """
    if isinstance(source, bytes):
        georeferenced = _has_geo_tags(io.BytesIO(source))
    else:
        georeferenced = is_georeferenced(source)
    if not georeferenced or not has_gdal():
        return None
    with GdalFile(source) as file:
        if all(kind.name == "all_valid" for kinds in file.file.mask_flag_enums for kind in kinds):
            return None
        stored = file.stored
    return Gaps(source, numbers or range(1, len(stored.kinds) + 1), stored.shape)


def gdal_driver(source: Source) -> str | None:
    """GDAL's driver for a TIFF or PNG file by its first bytes; None for other formats.

    Other drivers are never tried, because some of them open further files or URLs.

    Raises:
        SetrError: the file cannot be opened, or is empty.
    """
    try:
        start = first_bytes(source, 4)
    except (OSError, ValueError) as error:  # or no name that a file can have
        raise unreadable(source_name(source), error, source) from None
    if not start:
        raise unreadable(source_name(source), ValueError("empty"), source)
    return _DRIVERS.get(start)
