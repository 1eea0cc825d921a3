"""V7 Darwin JSON 2.0: a file per image with polygons or a raster layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from setr.images import encode_png
from setr.outlines.drawing import Patch, Ring, Shape, as_points, unrolled
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.reading.parsed import BROKEN, fault_of

_NO_AREA = ("bounding_box", "keypoint", "line", "skeleton", "cuboid", "eye", "graph")


def is_darwin(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file is of this format."""
    item = content.get("item")
    return isinstance(item, dict) and "name" in item and isinstance(item.get("slots"), list)


def read_darwin(
    name: str, content: Mapping[str, Any], index: ImageIndex, out: AnnotatedFolder
) -> None:
    """Add the image of a file and its annotations; later ones are drawn over earlier ones."""
    item = content["item"]
    image_name = f"{item.get('path') or ''}/{item['name']}".lstrip("/")
    images = index.find(image_name, name)
    if len(images) != 1:
        out.problems.append(image_problem(name, image_name, images))
        return
    try:
        slot, annotations = item["slots"][0], content["annotations"]
        size = int(slot["height"]), int(slot["width"])
        masks = {a["id"]: str(a["name"]) for a in annotations if "mask" in a}
    except BROKEN as error:
        out.problems.append(f"{name}: not valid Darwin JSON of V7 ({fault_of(error)})")
        return
    shapes = []
    for number, given in enumerate(annotations, 1):
        try:
            if not isinstance(given, dict):
                raise TypeError
            if "polygon" in given:  # several paths follow the even-odd rule
                first, *others = (
                    as_points([(point["x"], point["y"]) for point in line])
                    for line in given["polygon"]["paths"]
                )
                shapes.append(Shape(str(given["name"]), (Ring(first, holes=tuple(others)),)))
            elif "raster_layer" in given:
                shapes += _rasters(given["raster_layer"], masks, size)
            elif "ellipse" in given or "frames" in given:
                raise ValueError
            for kind in set(_NO_AREA) & set(given) if "polygon" not in given else ():
                out.leave_out(f"V7's {kind}")
        except BROKEN:
            out.problems.append(
                f"{name}: annotation {number} is broken, an ellipse (make it a polygon), or of a "
                "video"
            )
    out.images.append(AnnotatedImage(images[0], tuple(shapes), name, size))


def _rasters(
    layer: Mapping[str, Any], masks: Mapping[str, str], size: tuple[int, int]
) -> list[Shape]:
    """The masks of a layer, stored row-major as pairs of a mask's number and a run length."""
    runs = np.array(layer["dense_rle"], np.int64).reshape(-1, 2)
    pixels = unrolled(runs[:, 0], runs[:, 1], size)
    numbers = {number: masks[key] for key, number in layer["mask_annotation_ids_mapping"].items()}
    return [
        Shape(class_name, (Patch(0, 0, encode_png((pixels == number).astype(np.uint8))),))
        for number, class_name in numbers.items()
    ]
