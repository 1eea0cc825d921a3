"""The mask of one image, drawn from its outlines."""

from __future__ import annotations

from pathlib import Path

from setr.bands import Bands, check_pixels
from setr.errors import SetrError
from setr.images import MAX_PIXELS, check_whole
from setr.labels import IGNORE
from setr.outlines.drawing import Drawn, Rules, draw
from setr.outlines.index import AnnotatedImage
from setr.outlines.window_masks import WindowMask
from setr.reading.gdal import GdalFile, without_data


def whole_mask(root: Path, entry: AnnotatedImage, rules: Rules) -> Drawn:
    """The mask of an image; pixels without data in a GeoTIFF are ignored.

    Raises:
        SetrError: image or outlines cannot be read, or are of different sizes.
    """
    size = _size(root / entry.image)
    if entry.size not in (None, size):
        turned, other = "draw on it as shown, EXIF rotation applied", "use the file drawn on"
        raise SetrError(
            f"{entry.source}: gives {entry.image} {entry.size[1]}x{entry.size[0]} pixels, the file "
            f"has {size[1]}x{size[0]}; {turned if entry.size == size[::-1] else other}"
        )
    try:
        drawn = draw(entry.shapes, size, rules)
    except SetrError as error:
        raise _of_source(entry, error) from None
    empty = without_data(root / entry.image, ())  # any band may be read
    if empty is not None:
        drawn.mask[empty[:]] = IGNORE
    return drawn


def mask_to_cut(root: Path, entry: AnnotatedImage, rules: Rules) -> Drawn | WindowMask:
    """The mask as a whole, or of a large image by windows.

    Raises:
        SetrError: as `whole_mask`.
    """
    with GdalFile(root / entry.image) as file:
        size = file.stored.shape
    if size[0] * size[1] <= MAX_PIXELS:
        return whole_mask(root, entry, rules)
    empty = without_data(root / entry.image, ())
    try:
        return WindowMask(entry.shapes, size, rules, empty)
    except SetrError as error:
        raise _of_source(entry, error) from None


def _of_source(entry: AnnotatedImage, error: SetrError) -> SetrError:
    """An error with the annotation file that it is about."""
    return SetrError(f"{entry.source}: {error}") if entry.source else error


def _size(path: Path) -> tuple[int, int]:
    """(H, W) of an RGB image, or of a TIFF file with any bands and values."""
    try:
        return check_whole(path)[0]
    except SetrError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
    return check_pixels(path, Bands((1,), ((0.0, 1.0),)))[0]
