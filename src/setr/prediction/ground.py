"""Where the pixels of a raster lie on a map, and how large they are on the ground.

A map's own units are no measure of areas: degrees have no area, and Web Mercator enlarges areas by
2.4 at 50° latitude. So pixels are measured in an equal-area projection of the ellipsoid, whatever
the map's reference system is (extra `geo`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from setr._extras import import_extra

EQUAL_AREA = "EPSG:6933"
_CHUNK = 64, 512
"""Rows and columns of pixels that are taken to be of one size, that of the middle."""
_REACH = 8
"""Distance in pixels over which a pixel's size is measured; one pixel is near the rounding."""


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
    around = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)]) * _REACH
    corners = geo.to_map((points[:, None] + around).reshape(-1, 2).astype(np.float64))
    try:
        x, y = warp.transform(geo.crs, EQUAL_AREA, *corners.T)
    except Exception:  # of PROJ: a local system, or a place outside the map
        return None
    left, right, above, below = np.stack([x, y], axis=1).reshape(-1, 4, 2).swapaxes(0, 1)
    across, down = (right - left) / (2 * _REACH), (below - above) / (2 * _REACH)
    areas = np.abs(across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0])
    return areas if np.isfinite(areas).all() else None


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
        K, (h, w), (rows, columns) = len(self._sums), mask.shape, _CHUNK
        counts, middles = [], []
        for top in range(0, h, rows):
            for left in range(0, w, columns):
                chunk = mask[top : top + rows, left : left + columns]
                counts.append(np.bincount(chunk.ravel(), minlength=K)[:K])
                middle = left + chunk.shape[1] / 2 + column, top + chunk.shape[0] / 2 + row
                middles.append(middle)
        areas = pixel_areas(self.geo, np.array(middles, np.float64).reshape(-1, 2))
        self._sums = None if areas is None else self._sums + areas @ np.stack(counts)

    def by_class(self, classes: Sequence[str]) -> dict[str, float]:
        """Square metres of each class that occurs, the largest first; empty if unknown."""
        if self._sums is None:
            return {}
        order = np.argsort(-self._sums, kind="stable")
        return {classes[i]: float(self._sums[i]) for i in order if self._sums[i]}
