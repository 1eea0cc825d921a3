"""Supervisely's format: `DATASET/img/x.jpg`, `DATASET/ann/x.jpg.json`, classes in `meta.json`.

Bitmaps are zlib-compressed PNG files in base64 with the position of their upper left pixel;
polygons may have holes.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Mapping
from typing import Any

from setr.outlines.drawing import Part, Patch, Ring, Shape, as_points
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.reading.parsed import BROKEN

MOST_BYTES = 100 << 20
"""Of a PNG file, which is compressed itself and so hardly grows."""


def is_supervisely(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file is of this format."""
    return isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict)


def supervisely_classes(content: Mapping[str, Any]) -> list[str]:
    """The classes listed in `meta.json`; empty for other files."""
    listed = content.get("classes")
    known = listed if isinstance(listed, list) else []
    return [str(c["title"]) for c in known if isinstance(c, dict) and "title" in c]


def read_supervisely(
    name: str, content: Mapping[str, Any], index: ImageIndex, out: AnnotatedFolder
) -> None:
    """Add the image of a file and its objects; later ones are drawn over earlier ones."""
    image = os.path.splitext(os.path.basename(name))[0]
    dataset = os.path.dirname(os.path.dirname(name))
    images = index.find(os.path.join(dataset, "img", image), name)
    if len(images) != 1:
        out.problems.append(image_problem(name, image, images))
        return
    shapes = []
    for number, given in enumerate(content["objects"], 1):
        try:
            part = _part(given)
            if part is None:
                out.leave_out(f"Supervisely's {given['geometryType']}")
            else:
                shapes.append(Shape(str(given["classTitle"]), (part,)))
        except (*BROKEN, zlib.error):
            out.problems.append(
                f"{name}: object {number} has no class, or is not a valid polygon or bitmap"
            )
    size = content["size"].get("height"), content["size"].get("width")
    known = size if isinstance(size[0], int) and isinstance(size[1], int) else None
    out.images.append(AnnotatedImage(images[0], tuple(shapes), name, known))


def _part(given: Mapping[str, Any]) -> Part | None:
    """An object's area; None for boxes, lines and points."""
    if given["geometryType"] == "polygon":
        points = given["points"]
        holes = tuple(as_points(hole) for hole in points.get("interior") or ())
        return Ring(as_points(points["exterior"]), holes=holes)
    if given["geometryType"] == "bitmap":
        left, top = map(int, given["bitmap"]["origin"])
        packed, inflate = base64.b64decode(given["bitmap"]["data"]), zlib.decompressobj()
        png = inflate.decompress(packed, MOST_BYTES)
        if inflate.unconsumed_tail or not inflate.eof:
            raise ValueError
        return Patch(top, left, png)
    return None
