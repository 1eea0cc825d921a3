"""The mask of one image, drawn from its outlines; of an image too large for memory, by windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setr.bands import Bands, check_pixels
from setr.errors import SetrError
from setr.images import MAX_PIXELS, check_whole
from setr.labels import IGNORE
from setr.outlines.drawing import Drawn, Ring, Rules, Shape, draw, in_order
from setr.outlines.index import AnnotatedImage
from setr.reading.gdal import GdalFile, without_data
from setr.reading.lazy_image import bounds


class WindowMask:
    """A mask of any size: `mask[a:b, c:d]` draws the ids (h, w) uint8 of a window.

    Args:
        shapes: polygons.
        size: (H, W) in pixels.
        rules: as for `draw`.
        empty: pixels without data, indexed in the same way; None if there are none.

    Raises:
        SetrError: shapes other than polygons.
    """

    def __init__(
        self, shapes: Sequence[Shape], size: tuple[int, int], rules: Rules, empty: Any = None
    ) -> None:
        self.shape, self.empty = size, empty
        self._rules = rules._replace(largest_first=False, order=())  # in order from here on
        drawn: list[tuple[str, list[Ring]]] = []
        for shape in shapes:
            rings = [part for part in shape.parts if isinstance(part, Ring)]
            if len(rings) < len(shape.parts):
                raise SetrError(
                    f"on images above {MAX_PIXELS:,} pixels only polygons are drawn, not masks or "
                    f"run lengths such as those of '{shape.name}'"
                )
            drawn.append((shape.name, [ring.in_pixels(size) for ring in rings]))
        self._drawn = in_order(drawn, rules, lambda ring: ring.area(size))
        corners = [np.concatenate([ring.points for ring in rings]) for _, rings in self._drawn]
        self._lows = np.array([points.min(axis=0) for points in corners]).reshape(-1, 2)
        self._highs = np.array([points.max(axis=0) for points in corners]).reshape(-1, 2)

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        (top, bottom), (left, right) = bounds(place, self.shape)
        here = (self._lows < (right, bottom)).all(axis=1) & (self._highs > (left, top)).all(axis=1)
        corner = np.array([left, top], float)
        shapes = [
            Shape(name, tuple(ring.mapped(lambda points: points - corner) for ring in rings))
            for name, rings in (self._drawn[index] for index in np.flatnonzero(here))
        ]
        size = bottom - top, right - left
        mask = draw(shapes, size, self._rules).mask
        if self.empty is not None:
            mask[self.empty[place]] = IGNORE
        return mask


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
