"""A mask as polygons: one per connected region, with holes, along the edges of pixels.

OpenCV's contours run through the centres of border pixels, so their area is too small, lines one
pixel wide have none, and neighbours leave a gap. Here a region is drawn at twice its size first:
each border pixel then shows which of its corners the contour passes, and the polygon runs along
pixel edges. Its area is exactly its number of pixels, neighbours share their edges, and filling all
polygons (a pixel belongs to the one that holds its centre) gives the mask back.

Coordinates are x, y in pixels: the image spans 0 .. W and 0 .. H, the centre of the first pixel is
(0.5, 0.5). Regions are connected by edges (4 neighbours), so no ring touches itself and every
polygon is valid in a geographic information system.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import cv2
import numpy as np

from setr.errors import UsageError

LARGEST_TOLERANCE = 1_000_000
"""Pixels of a tolerance, more than any image has on a side."""


class PolygonOptions(TypedDict, total=False):
    """Keyword arguments of `Result.polygons`, which explains them, and of what is made of them."""

    tolerance: float
    min_pixels: int
    classes: Sequence[str]


@dataclass(frozen=True)
class Polygon:
    """One connected region of one class.

    Attributes:
        class_id: its training id.
        rings: the outline, then holes; each int32 (N, 2) corners x, y without repeating the first.
            The outline's shoelace area is positive (x to the right, y down the image), a hole's
            negative.
        pixels: area of the region in the mask, holes left out, before any simplification.
        box: x, y, width, height in pixels.
    """

    class_id: int
    rings: tuple[np.ndarray, ...]
    pixels: int
    box: tuple[int, int, int, int]

    @property
    def area(self) -> float:
        """Area inside the rings in square pixels; equals `pixels` if nothing was simplified."""
        return float(sum(signed_area(ring) for ring in self.rings))


def signed_area(ring: np.ndarray) -> float:
    """Shoelace area of a ring (N, 2), positive where x turns towards y."""
    x, y = ring.astype(np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def mask_polygons(
    mask: np.ndarray,
    num_classes: int,
    *,
    min_pixels: int = 1,
    class_ids: Collection[int] | None = None,
) -> list[Polygon]:
    """Exact polygons of all regions, by class and then from top to bottom.

    Args:
        mask: training ids (H, W) uint8; ids from `num_classes` on belong to no region.
        num_classes: K.
        min_pixels: smaller regions are left out.
        class_ids: the classes to outline; all by default.
    """
    found = []
    counts = np.bincount(mask.ravel(), minlength=num_classes)
    for class_id in np.flatnonzero(counts[:num_classes] >= max(1, min_pixels)):
        if class_ids is not None and class_id not in class_ids:
            continue
        for region, box in _regions(mask, int(class_id), min_pixels):
            corner = np.array(box[:2], np.int32)
            rings = tuple(ring + corner for ring in _rings(region))
            found.append(Polygon(int(class_id), rings, int(np.count_nonzero(region)), box))
    return found


def simplified(polygon: Polygon, tolerance: float) -> Polygon:
    """The polygon with fewer corners (Douglas and Peucker), its `pixels` and `box` unchanged.

    Args:
        polygon: as `mask_polygons` gives it.
        tolerance: the outline moves by at most this many pixels; 0 changes nothing. Rings are
            simplified one by one, so neighbours may overlap or leave slits of that width.

    Raises:
        SetrError: a negative tolerance, or more than `LARGEST_TOLERANCE`.
    """
    if not 0 <= tolerance <= LARGEST_TOLERANCE:
        raise UsageError(f"tolerance {tolerance:g}: give 0 (exact) to {LARGEST_TOLERANCE:,} pixels")
    if tolerance == 0:
        return polygon
    rings = tuple(_fewer_corners(ring, tolerance) for ring in polygon.rings)
    return dataclasses.replace(polygon, rings=rings)


def run_lengths(polygon: Polygon, size: tuple[int, int]) -> list[int]:
    """COCO's run lengths of an exact polygon: pixels out, in, out, … column by column.

    Args:
        polygon: as `mask_polygons` gives it; a simplified one has no run lengths.
        size: (H, W) of the mask.
    """
    H, W = size
    crossings = []
    for ring in polygon.rings:
        ends = np.roll(ring, -1, axis=0)
        level = ring[:, 1] == ends[:, 1]
        first, last = np.sort(np.stack([ring[level, 0], ends[level, 0]]), axis=0).astype(np.int64)
        length = last - first
        start = np.repeat(first - np.cumsum(length) + length, length)
        x = start + np.arange(length.sum())
        crossings.append(x * H + np.repeat(ring[level, 1], length))
    places, times = np.unique(np.concatenate(crossings), return_counts=True)
    places = places[times % 2 == 1]  # the foot of a column and the head of the next cancel
    return np.diff(places, prepend=0, append=H * W).tolist()


def _regions(
    mask: np.ndarray, class_id: int, min_pixels: int
) -> Iterator[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """Connected regions of a class: uint8 0/1 cut to the region's box, and that box."""
    left, top, width, height = cv2.boundingRect((mask == class_id).view(np.uint8))
    inside = (mask[top : top + height, left : left + width] == class_id).view(np.uint8)
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
    for number in np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= min_pixels) + 1:  # 0: the rest
        x, y, w, h = stats[number, : cv2.CC_STAT_AREA].tolist()
        region = (numbers[y : y + h, x : x + w] == number).view(np.uint8)
        yield region, (left + x, top + y, w, h)


def _rings(region: np.ndarray) -> list[np.ndarray]:
    """Outline and holes of one connected region along pixel edges, corners only."""
    doubled = region.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings: list[np.ndarray] = []
    for points, (_, _, _, parent) in zip(contours, hierarchy.reshape(-1, 4), strict=True):
        ring = _corners((points[:, 0] + 1) // 2)
        if (signed_area(ring) < 0) == (parent < 0):
            ring = ring[::-1]
        rings.insert(0 if parent < 0 else len(rings), np.ascontiguousarray(ring, np.int32))
    return rings


def _corners(path: np.ndarray) -> np.ndarray:
    """A closed path of unit steps (N, 2), points repeated, -> the points where it turns."""
    path = path[(path != np.roll(path, 1, axis=0)).any(axis=1)]
    before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
    return path[(before != after).any(axis=1)]


def _fewer_corners(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A simplified closed ring; one that would collapse or change orientation is kept."""
    fewer = cv2.approxPolyDP(ring[:, None], tolerance, closed=True)[:, 0]
    return fewer if len(fewer) > 2 and signed_area(fewer) * signed_area(ring) > 0 else ring
