"""Files of tiles: compressed GeoTIFF that keeps bands, values and place (extra `geo`)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from setr.data.tile_draft import Window
from setr.errors import SetrError
from setr.reading.decode import orientation
from setr.reading.gdal import GdalFile, gdal_reason, import_gdal
from setr.reading.lazy_image import bounds
from setr.reading.masks import ColourMaskError, read_mask, read_palette
from setr.reading.pillow import MAX_PIXELS, opened
from setr.writing import cannot_write, write_bytes


class TiffMask:
    """A mask of any size in a TIFF file: `mask[a:b, c:d]` reads a window (h, w) or (h, w, 3)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with GdalFile(path, "mask") as file:
            self.palette, self.shape = file.palette(), file.stored.shape
            self.bands = range(1, min(3, len(file.stored.kinds)) + 1)

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        rows, columns = bounds(place, self.shape)
        with GdalFile(self.path, "mask") as file:
            values = file.read(self.bands, rows, columns)
        return values[0] if len(values) < 3 else values.transpose(1, 2, 0)


def mask_to_cut(path: Path) -> tuple[Any, np.ndarray | None]:
    """A mask file for `TileFolder.cut`, and its palette.

    Only TIFF files may be larger than `MAX_PIXELS`.

    Raises:
        SetrError: unreadable.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        mask = TiffMask(path)
        if mask.shape[0] * mask.shape[1] > MAX_PIXELS:
            return mask, mask.palette
    colours = read_palette(path)
    try:
        pixels = read_mask(path)
    except ColourMaskError:
        return read_mask(path, rgb=True), None
    palette = np.zeros((max(colours, default=0) + 1, 3), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour >> 16, colour >> 8 & 255, colour & 255
    return pixels, palette if colours and pixels.dtype == np.uint8 else None


def is_turned(path: Path) -> bool:
    """Whether a tag says that the image is shown rotated or mirrored; tiles are cut as stored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken files, which are told when they are read
            with opened(path, MAX_PIXELS) as image:
                return orientation(image) != 1
    except SetrError:  # bands that Pillow does not know, or a large raster
        return False


def is_blank(source: GdalFile, window: Window) -> bool:
    """Whether a window is transparent and of one colour.

    Bands that a file marks as alpha may be near infrared, so transparency alone does not count.
    """
    if source.has_data(*window).any():
        return False
    values = source.read(range(1, len(source.stored.kinds) + 1), *window)
    return bool((values == values[:, :1, :1]).all())


def box_of(file: Any, window: Window) -> tuple[float, float, float, float]:
    """Bounding box of a window in the file's coordinates, in pixels if it has no georeference."""
    (top, bottom), (left, right) = window
    a, b, c, d, e, f = tuple(file.transform)[:6]
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (left, right) for y in (top, bottom)]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def write_image(source: GdalFile, window: Window, path: Path) -> None:
    """Write a window of all bands, with what tells their meaning: names, colours, gaps.

    Raises:
        SetrError: the window cannot be read, or the file not written.
    """
    file = source.file
    values = source.read(range(1, file.count + 1), *window)
    kinds = [colour.name for colour in file.colorinterp]
    profile = _profile(source, window, values)
    if file.nodatavals[0] is not None:
        profile["nodata"] = file.nodatavals[0]
    if kinds[:3] == ["red", "green", "blue"]:
        profile["photometric"] = "rgb"
    own_mask = all([kind.name for kind in band] == ["per_dataset"] for band in file.mask_flag_enums)
    with _created(path, profile) as out:
        out.colorinterp = file.colorinterp
        if kinds[0] == "palette":
            out.write_colormap(1, file.colormap(1))
        out.descriptions = file.descriptions
        out.scales, out.offsets = file.scales, file.offsets
        out.write(values)
        if own_mask:
            out.write_mask(source.has_data(*window))


def write_mask(
    source: GdalFile, window: Window, path: Path, values: np.ndarray, palette: np.ndarray | None
) -> None:
    """Write ids (h, w) or colours (h, w, 3) of a window, at the place of its image.

    Raises:
        SetrError: the file cannot be written.
    """
    bands = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    profile = _profile(source, window, bands)
    if len(bands) == 3:
        profile["photometric"] = "rgb"
    with _created(path, profile) as out:
        if palette is not None:
            out.write_colormap(1, {i: (*map(int, c), 255) for i, c in enumerate(palette)})
        out.write(bands)


def _profile(source: GdalFile, window: Window, values: np.ndarray) -> dict[str, Any]:
    """What a tile with these values (C, h, w) is written as, at its place on the map."""
    (top, _), (left, _) = window
    file = source.file
    a, b, c, d, e, f = tuple(file.transform)[:6]
    moved = type(file.transform)(a, b, a * left + b * top + c, d, e, d * left + e * top + f)
    on_map = not file.transform.is_identity
    kind = values.dtype.kind
    return {
        "driver": "GTiff",
        "dtype": values.dtype.name,
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "crs": file.crs,
        **({"transform": moved} if on_map else {}),
        "compress": "deflate",
        "predictor": 2 if kind in "iu" else 3 if kind == "f" else 1,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "interleave": "pixel",
    }


@contextlib.contextmanager
def _created(path: Path, profile: dict[str, Any]) -> Iterator[Any]:
    """A new GeoTIFF file to write to.

    It is made in memory, because closing a file with GDAL reports no full disk.
    """
    gdal = import_gdal(str(path))
    try:
        options = {"GDAL_PAM_ENABLED": False, "GDAL_TIFF_INTERNAL_MASK": True}
        with gdal.Env(**options), gdal.MemoryFile() as memory:
            with memory.open(**profile) as out:
                yield out
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, bytes(memory.getbuffer()))
    except SetrError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from None
    except Exception as error:
        raise SetrError(f"{path}: cannot write: {gdal_reason(error):.120}") from None
