"""The areas of a map layer, and leading them from one reference system to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from setr.errors import SetrError
from setr.outlines.drawing import Ring, Shape
from setr.reading.vectors import Box


class Area(NamedTuple):
    """A feature: its class, and its polygons, each an outline (N, 2) followed by its holes."""

    name: str
    polygons: list[list[np.ndarray]]

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounding box: minimum and maximum coordinates."""
        points = np.concatenate([outline for outline, *_ in self.polygons])
        return points.min(axis=0), points.max(axis=0)

    def shape(self) -> Shape:
        """The shape to draw; coordinates must be pixels."""
        lines = ((outline, tuple(holes)) for outline, *holes in self.polygons)
        return Shape(self.name, tuple(Ring(outline, holes=holes) for outline, holes in lines))


def transformed(areas: list[Area], to: Callable[[np.ndarray], np.ndarray]) -> list[Area]:
    """Areas with a function of points (N, 2) applied to all their points at once."""
    lines = [line for area in areas for polygon in area.polygons for line in polygon]
    if not lines:
        return areas
    ends = np.cumsum([len(line) for line in lines])[:-1]
    parts = iter(np.split(to(np.concatenate(lines)), ends))
    return [
        area._replace(polygons=[[next(parts) for _ in polygon] for polygon in area.polygons])
        for area in areas
    ]


def complete(name: str, areas: list[Area], moved: list[Area], box: Box | None) -> list[Area]:
    """The reprojected areas without those far away from all images that could not be.

    Args:
        name: of the layer, for the message.
        areas: in the layer's coordinates.
        moved: the same in those of an image; points that have none there are not finite.
        box: contains the images, in the layer's coordinates; None if unknown.

    Raises:
        SetrError: an area near an image that has points too far away.
    """
    found = []
    for area, own in zip(areas, moved, strict=True):
        if np.isfinite(own.box()).all():
            found.append(own)
            continue
        low, high = area.box()
        if box is None or ((low < box[2:]).all() and (high > box[:2]).all()):
            raise SetrError(
                f"{name}: an area of class '{area.name:.40}' reaches too far from the images "
                "for their reference system; clip the layer to their surroundings"
            )
    return found
