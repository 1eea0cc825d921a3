"""LabelMe: a JSON file per image, next to it or in another folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from setr.outlines.drawing import Part, Patch, Ring, Shape, as_points
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.reading.parsed import BROKEN


def is_labelme(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file is of this format."""
    return isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(
    name: str, content: Mapping[str, Any], index: ImageIndex, out: AnnotatedFolder
) -> None:
    """Add the image of a file and its shapes; later ones are drawn over earlier ones."""
    stem, recorded = os.path.splitext(name)[0], str(content["imagePath"])
    images = index.find(os.path.basename(stem), name)
    if len(images) != 1:  # imagePath is relative to the JSON file
        place = os.path.join(os.path.dirname(name), recorded.replace("\\", "/"))
        images = index.find(os.path.normpath(place), name) or images
    if len(images) != 1:
        out.problems.append(image_problem(name, recorded, images))
        return
    shapes = []
    for number, shape in enumerate(content["shapes"], 1):
        try:
            part = _part(shape)
            if part is None:
                out.leave_out(f"LabelMe's {shape['shape_type']}")
            else:
                shapes.append(Shape(_label(shape), (part,)))
        except BROKEN:
            out.problems.append(f"{name}: shape {number} has no label, or no points of its kind")
    size = content.get("imageHeight"), content.get("imageWidth")
    known = size if isinstance(size[0], int) and isinstance(size[1], int) else None
    out.images.append(AnnotatedImage(images[0], tuple(shapes), name, known))  # type: ignore[arg-type]


def _label(shape: Mapping[str, Any]) -> str:
    if shape["label"] in (None, ""):
        raise ValueError
    return str(shape["label"])


def _part(shape: Mapping[str, Any]) -> Part | None:
    """A shape's area; None for lines and points."""
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon":
        return Ring(as_points(shape["points"]))
    if kind == "rectangle":
        (x0, y0), (x1, y1) = np.sort(as_points(shape["points"], 2)[[0, -1]], axis=0)
        if len(shape["points"]) == 2:
            return Ring(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))
        return Ring(as_points(shape["points"]))
    if kind == "circle":
        centre, edge = as_points(shape["points"], 2)
        radius = math.dist(centre, edge)
        corners = min(max(16, math.ceil(8 * math.sqrt(radius))), 10_000)  # error below 0.1 pixel
        t = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        return Ring(centre + radius * np.stack([np.cos(t), np.sin(t)], axis=1))
    if kind == "mask":
        left, top = np.round(as_points(shape["points"], 1)[0]).astype(int).tolist()
        return Patch(top, left, str(shape["mask"]))
    return None
