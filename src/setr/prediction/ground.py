"""Where the pixels of a raster lie on a map, and how large they are on the ground.

A map's own units are no measure of areas: degrees have no area, and Web Mercator enlarges areas by
2.4 at 50° latitude. So pixels are measured in space, on the ellipsoid of WGS 84, whatever the map's
reference system is (extra `geo`). Space has neither a pole nor a meridian at which a map ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from setr._extras import import_extra

_AXIS, _FLATTENING = 6_378_137.0, 1 / 298.257223563
"""Equatorial radius in metres and flattening of WGS 84."""
_APART = 50_000.0, 512
"""Metres and pixels between the places at which sizes are measured; they are linear in between."""
_ROWS = 64
"""Rows whose sizes are computed at a time."""


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of a raster lie on a map.

    Attributes:
        crs: coordinate reference system as `EPSG:32633` or WKT; empty if the file names none.
        transform: (a, b, c, d, e, f): map x = a·x + b·y + c and map y = d·x + e·y + f for pixel
            corners x, y.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def to_map(self, points: np.ndarray) -> np.ndarray:
        """Pixel corners (N, 2) -> map coordinates (N, 2) float64."""
        a, b, c, d, e, f = self.transform
        return points @ np.array([[a, d], [b, e]], np.float64) + (c, f)

    @property
    def mirrors(self) -> bool:
        """Whether turning left in pixels is turning right on the map, as where y points north."""
        a, b, _, d, e, _ = self.transform
        return a * e - b * d < 0


def pixel_areas(geo: Georeference, points: np.ndarray) -> np.ndarray | None:
    """Square metres of a pixel at some places of a raster.

    Args:
        geo: its place on the map.
        points: (N, 2) x, y in pixels.

    Returns:
        (N,) float64; None where the reference system is unknown or none of the earth.
    """
    if not geo.crs or not len(points):
        return None
    warp = import_extra("rasterio.warp", "geo", "areas")
    around = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)]) / 2
    places = geo.to_map((points[:, None] + around).reshape(-1, 2).astype(np.float64))
    try:
        longitude, latitude = np.radians(warp.transform(geo.crs, "EPSG:4326", *places.T))
    except Exception:  # of PROJ: a local system, or a place outside the map
        return None
    squared = _FLATTENING * (2 - _FLATTENING)
    normal = _AXIS / np.sqrt(1 - squared * np.sin(latitude) ** 2)
    from_axis = normal * np.cos(latitude)
    x, y = from_axis * np.cos(longitude), from_axis * np.sin(longitude)
    z = normal * (1 - squared) * np.sin(latitude)
    left, right, above, below = np.stack([x, y, z], axis=1).reshape(-1, 4, 3).swapaxes(0, 1)
    areas = np.linalg.norm(np.cross(right - left, below - above), axis=1)
    return areas if np.isfinite(areas).all() else None


class PixelSizes:
    """Square metres of the pixels in a part of a raster, interpolated between measured ones.

    Args:
        shape: (h, w) of the part.
        row, column: place of its upper left pixel.

    Attributes:
        known: whether the reference system is one of the earth; else there are no sizes.
    """

    def __init__(
        self, geo: Georeference, shape: tuple[int, int], row: int = 0, column: int = 0
    ) -> None:
        self._shape, self._corner = shape, (row, column)
        middle = np.array([[column + shape[1] / 2, row + shape[0] / 2]])
        size = pixel_areas(geo, middle)
        measured = None
        if size is not None:
            apart = max(1.0, min(_APART[1], _APART[0] / max(math.sqrt(size[0]), 1e-9)))
            # in the middles of pixels, so that none lies beyond the end of the map
            ys, xs = (np.linspace(0.5, n - 0.5, 1 + math.ceil((n - 1) / apart)) for n in shape)
            places = np.stack(np.meshgrid(xs + column, ys + row), axis=-1)
            measured = pixel_areas(geo, places.reshape(-1, 2))
            self._grid = np.empty(0) if measured is None else measured.reshape(places.shape[:2])
        self.known = measured is not None

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Areas (N,) at places (N,) of the raster in pixels, inside the part."""
        (top, bottom, down), (left, right, across) = self._between(0, y), self._between(1, x)
        above = self._grid[top, left] * (1 - across) + self._grid[top, right] * across
        below = self._grid[bottom, left] * (1 - across) + self._grid[bottom, right] * across
        return np.asarray(above * (1 - down) + below * down)

    def sums(self, ids: np.ndarray, row: int, column: int, count: int) -> np.ndarray:
        """Areas (count,) of the ids 0 .. count - 1 in a block (h, w) at a place of the raster."""
        total, (h, w) = np.zeros(count), ids.shape
        left, right, across = self._between(1, np.arange(w) + (column + 0.5))
        lines = self._grid[:, left] * (1 - across) + self._grid[:, right] * across
        top, bottom, down = self._between(0, np.arange(h) + (row + 0.5))
        for first in range(0, h, _ROWS):
            rows = slice(first, first + _ROWS)
            part = down[rows, None]
            areas = lines[top[rows]] * (1 - part) + lines[bottom[rows]] * part
            total += np.bincount(ids[rows].ravel(), weights=areas.ravel(), minlength=count)[:count]
        return total

    def _between(self, axis: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The measured places before and after others, and how far these are from the first."""
        first, nodes, count = self._corner[axis], self._grid.shape[axis], self._shape[axis]
        along = (place - first - 0.5).clip(0, count - 1) * ((nodes - 1) / max(count - 1, 1))
        before = along.astype(np.intp).clip(max=max(nodes - 2, 0))
        return before, np.minimum(before + 1, nodes - 1), along - before


class ClassAreas:
    """Sums of the areas of classes.

    Args:
        geo: the raster's place on the map; None for other images.
        num_classes: K.
    """

    def __init__(self, geo: Georeference | None, num_classes: int) -> None:
        self.geo = geo
        self._sums: np.ndarray | None = None if geo is None else np.zeros(num_classes)

    def add(self, mask: np.ndarray, row: int = 0, column: int = 0) -> None:
        """Add a block of ids (h, w) whose upper left pixel is at a place of the raster."""
        if self.geo is None or self._sums is None:
            return
        sizes = PixelSizes(self.geo, mask.shape, row, column)
        more = sizes.sums(mask, row, column, len(self._sums)) if sizes.known else None
        self._sums = None if more is None else self._sums + more

    def by_class(self, classes: Sequence[str]) -> dict[str, float]:
        """Square metres of each class that occurs, the largest first; empty if unknown."""
        if self._sums is None:
            return {}
        order = np.argsort(-self._sums, kind="stable")
        return {classes[i]: float(self._sums[i]) for i in order if self._sums[i]}
