"""Where images lie on a map, and leading points from a map to their pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr.errors import SetrError
from setr.reading.gdal import GdalFile, gdal_reason, import_gdal
from setr.reading.vectors import Box


class Place(NamedTuple):
    """Size (H, W), reference system (None if unknown) and affine transform of an image."""

    size: tuple[int, int]
    crs: Any
    transform: Any

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map coordinates (N, 2) as x, y in pixels."""
        return _apply_affine(points, ~self.transform)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounding box in map coordinates: minimum and maximum."""
        H, W = self.size
        corners = _apply_affine(np.array([(0, 0), (W, 0), (0, H), (W, H)], float), self.transform)
        return corners.min(axis=0), corners.max(axis=0)


def place_of(root: Path, image: str) -> Place:
    """The place of a georeferenced image, whose name is relative to `root`.

    Raises:
        SetrError: unreadable, or pixels without an area.
    """
    with GdalFile(root / image) as opened:
        file = opened.file
        if file.transform.is_degenerate:
            raise SetrError(f"{image}: its georeference gives pixels an area of zero")
        return Place(file.shape, file.crs, file.transform)


def common_box(places: list[Place], crs: str) -> Box | None:
    """A box in another reference system that contains all images; None if it cannot be known."""
    if not crs or any(place.crs is None for place in places):
        return None
    from rasterio.warp import transform_bounds

    boxes = []
    for place in places:
        low, high = place.box()
        try:
            with import_gdal("").Env():
                boxes.append(transform_bounds(place.crs, crs, *low, *high))
        except Exception:
            return None
    found = np.array(boxes)
    if not np.isfinite(found).all() or (found[:, 0] > found[:, 2]).any():  # over the antimeridian
        return None
    low, high = found[:, :2].min(axis=0), found[:, 2:].max(axis=0)
    margin = 0.01 * (high - low)
    return (*(low - margin).tolist(), *(high + margin).tolist())


def crs_transform(name: str, own: str, target: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function that reprojects points from a file's reference system to an image's.

    If either system is unknown, points are not changed.

    Raises:
        SetrError: an invalid system; when called, points that cannot be reprojected.
    """
    if target is None or not own:
        return lambda points: points
    gdal = import_gdal(name)
    from rasterio.warp import transform

    try:
        with gdal.Env():  # keeps PROJ from writing to stderr
            system = gdal.CRS.from_user_input(own)
    except Exception:
        raise SetrError(f"{name}: unknown reference system '{own:.60}'") from None

    def reproject(points: np.ndarray) -> np.ndarray:
        try:
            return np.stack(transform(system, target, *points.T), axis=1)
        except Exception as error:
            systems = f"{own:.60} to {target.to_string():.60}"
            raise SetrError(
                f"{name}: cannot be reprojected from {systems} ({gdal_reason(error):.80})"
            ) from None

    return (lambda points: points) if system == target else reproject


def _apply_affine(points: np.ndarray, transform: Any) -> np.ndarray:
    """Points (N, 2) mapped by an affine transform."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return points @ np.array([[a, d], [b, e]]) + (c, f)
