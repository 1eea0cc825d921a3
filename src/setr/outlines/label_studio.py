"""Label Studio's own exports, JSON and JSON-MIN: tasks, each with the regions of an image.

Coordinates are in percent of width and height. Brush strokes are RGBA pixels compressed with
thi.ng's rle-pack: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np

from setr.data.pairing import is_file
from setr.images import encode_png
from setr.outlines.drawing import Part, Patch, Ring, Shape, as_points, ellipse
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.reading.parsed import BROKEN, fault_of
from setr.reading.pillow import MAX_PIXELS


def label_studio_tasks(content: Any) -> list[dict[str, Any]]:
    """The tasks of a JSON file; empty for other formats."""
    tasks = content if isinstance(content, list) else [content]
    found = [_task(task) for task in tasks if isinstance(task, dict)]
    return [task for task in found if task] if len(found) == len(tasks) else []


def _task(given: dict[str, Any]) -> dict[str, Any]:
    """A task with `data` and `annotations`; empty if this is not a task."""
    if isinstance(given.get("data"), dict):
        annotations = given.get("annotations", given.get("completions"))
        known = isinstance(annotations, list)
        return {"data": given["data"], "annotations": annotations} if known else {}
    if "annotation_id" not in given:
        return {}
    values = (v for part in given.values() if isinstance(part, list) for v in part)
    results = [{**v, "value": v} for v in values if isinstance(v, dict)]  # JSON-MIN
    return {"data": given, "annotations": [{"result": results}]}


def read_label_studio(
    name: str, tasks: list[dict[str, Any]], index: ImageIndex, out: AnnotatedFolder
) -> None:
    """Add the images of a file and their regions; later ones are drawn over earlier ones."""
    for number, task in enumerate(tasks, 1):
        try:
            image_name = _image_name(task["data"])
            annotations = [a for a in task["annotations"] if not a.get("was_cancelled")]
            stem = re.sub(r"^[0-9a-f]{8}-", "", os.path.basename(image_name))  # added on upload
            images = index.find(image_name, name) or index.find(stem, name)
            if annotations and len(images) != 1:
                out.problems.append(image_problem(name, image_name, images))
                continue
            for annotation in annotations:
                shapes, size = _shapes(f"{name}: {image_name}", annotation["result"], out)
                out.images.append(AnnotatedImage(images[0], shapes, name, size))
        except BROKEN as error:
            out.problems.append(
                f"{name}: task {number} is not valid Label Studio JSON ({fault_of(error)})"
            )


def _image_name(data: Mapping[str, Any]) -> str:
    """The image of a task: the only value that is an image file name, or the one called `image`."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    paths = {k: unquote(v.rpartition("?d=")[2].partition("?")[0]) for k, v in texts.items()}
    files = {key: path for key, path in paths.items() if is_file(path)}
    if len(files) != 1 and "image" not in files:
        raise ValueError("no image, or several")
    return files.get("image") or next(iter(files.values()))


def _shapes(
    place: str, results: list[dict[str, Any]], out: AnnotatedFolder
) -> tuple[tuple[Shape, ...], tuple[int, int] | None]:
    """The regions of an image, and the image size they state."""
    size, shapes = None, list[Shape]()
    if not all(isinstance(result, dict) for result in results):
        raise TypeError
    results = [result for result in results if "value" in result]  # others are relations
    named = {result.get("id") for result in results if _labels(result["value"])}
    for number, result in enumerate(results, 1):
        value, labels = result["value"], _labels(result["value"])
        if not labels and result.get("id") in named:  # the label is in another result
            continue
        try:
            if result.get("original_height"):
                size = int(result["original_height"]), int(result["original_width"])
            part = _part(value, size)
            if part is not None:
                (label,) = labels
                if result.get("image_rotation"):
                    raise ValueError
                shapes.append(Shape(str(label), (part,)))
            elif labels:
                out.leave_out(f"Label Studio's {result.get('type', 'boxes and points')}")
        except BROKEN:
            out.problems.append(
                f"{place}: region {number} has no label or several, belongs to a rotated image, or "
                "is broken"
            )
    return tuple(shapes), size


def _labels(value: Mapping[str, Any]) -> list[Any]:
    """`polygonlabels`, `brushlabels`, `labels`, and the like."""
    return next((v for k, v in value.items() if k.endswith("labels") and isinstance(v, list)), [])


def _part(value: Mapping[str, Any], size: tuple[int, int] | None) -> Part | None:
    """A region's area; None for boxes, points and image-level labels."""
    if "points" in value:
        return Ring(as_points(value["points"]) / 100, relative=True)
    if "rle" in value and size:
        return Patch(0, 0, encode_png(_brush(value["rle"], size)))
    if "radiusX" in value and size:
        sides = (size[1] / 100, size[0] / 100)
        centre = value["x"] * sides[0], value["y"] * sides[1]
        radii = value["radiusX"] * sides[0], value["radiusY"] * sides[1]
        return ellipse(centre, radii, math.radians(value.get("rotation") or 0))
    return None


def _brush(packed: list[int], size: tuple[int, int]) -> np.ndarray:
    """Decode a brush stroke, uint8 (H, W): 1 where alpha is above half of its maximum."""
    bits, position = "".join(f"{byte:08b}" for byte in bytes(packed)), 0

    def take(count: int) -> int:
        """The next bits as a number."""
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    length, width = take(32), take(5) + 1
    counts = [take(4) + 1 for _ in range(4)]
    if length != 4 * size[0] * size[1] or length > 4 * MAX_PIXELS or width > 8:
        raise ValueError
    values, start = np.zeros(length, np.uint8), 0
    while start < length:
        repeated, end = take(1), start + 1 + take(counts[take(2)])
        if repeated:
            values[start:end] = take(width)
        else:
            values[start:end] = [take(width) for _ in range(end - start)]
        start = end
    alpha = values[3::4].reshape(size)
    return (alpha > alpha.max() / 2).astype(np.uint8)
