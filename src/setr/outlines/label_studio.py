"""Outlines in Label Studio's own exports, JSON and JSON-MIN: tasks, each with an image's regions.

Coordinates are in percent of the sides. Brush strokes are RGBA pixels in the run lengths of
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
from setr.outlines.geojson import BROKEN
from setr.outlines.index import Annotated, Images, Outlined, not_one


def label_studio_tasks(content: Any) -> list[dict[str, Any]]:
    """The tasks of a JSON file; none of another file."""
    tasks = content if isinstance(content, list) else [content]
    found = [_task(task) for task in tasks if isinstance(task, dict)]
    return [task for task in found if task] if len(found) == len(tasks) else []


def _task(given: dict[str, Any]) -> dict[str, Any]:
    """A task with `data` and `annotations`; empty if it is none."""
    if isinstance(given.get("data"), dict):
        made = given.get("annotations", given.get("completions"))
        return {"data": given["data"], "annotations": made} if isinstance(made, list) else {}
    if "annotation_id" not in given:
        return {}
    values = (v for part in given.values() if isinstance(part, list) for v in part)
    results = [{**v, "value": v} for v in values if isinstance(v, dict)]  # JSON-MIN
    return {"data": given, "annotations": [{"result": results}]}


def read_label_studio(name: str, tasks: list[dict[str, Any]], where: Images, out: Outlined) -> None:
    """Add the annotated images of a file and their regions; later ones lie over earlier ones."""
    for number, task in enumerate(tasks, 1):
        try:
            called = _called(task["data"])
            made = [a for a in task["annotations"] if not a.get("was_cancelled")]
            stem = re.sub(r"^[0-9a-f]{8}-", "", os.path.basename(called))  # of an upload
            images = where.find(called, name) or where.find(stem, name)
            if made and len(images) != 1:
                out.problems.append(not_one(name, called, images))
                continue
            for annotation in made:
                shapes, size = _shapes(f"{name}: {called}", annotation["result"], out)
                out.images.append(Annotated(images[0], shapes, name, size))
        except BROKEN as error:
            out.problems.append(f"{name}: task {number} is not as Label Studio has it ({error!r})")


def _called(data: Mapping[str, Any]) -> str:
    """The image of a task: the only value, or the one called `image`, that ends as images do."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    paths = {k: unquote(v.rpartition("?d=")[2].partition("?")[0]) for k, v in texts.items()}
    files = {key: path for key, path in paths.items() if is_file(path)}
    if len(files) != 1 and "image" not in files:
        raise ValueError("no image, or several")
    return files.get("image") or next(iter(files.values()))


def _shapes(
    place: str, results: list[dict[str, Any]], out: Outlined
) -> tuple[tuple[Shape, ...], tuple[int, int] | None]:
    """The regions of an image, and the size that they give it."""
    size, shapes = None, list[Shape]()
    results = [result for result in results if "value" in result]  # others relate two of them
    named = {result.get("id") for result in results if _labels(result["value"])}
    for number, result in enumerate(results, 1):
        value, labels = result["value"], _labels(result["value"])
        if not labels and result.get("id") in named:  # its label is a result of its own
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
                f"{place}: region {number} has no label or several, lies in an image that was "
                "turned, or is broken"
            )
    return tuple(shapes), size


def _labels(value: Mapping[str, Any]) -> list[Any]:
    """`polygonlabels`, `brushlabels`, `labels`, and the like."""
    return next((v for k, v in value.items() if k.endswith("labels") and isinstance(v, list)), [])


def _part(value: Mapping[str, Any], size: tuple[int, int] | None) -> Part | None:
    """A region's area; None for boxes, points and what is said of the whole image."""
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
    """Where a brush stroke is at least half as opaque as anywhere, uint8 (H, W)."""
    bits, place = "".join(f"{byte:08b}" for byte in bytes(packed)), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    length, width = take(32), take(5) + 1
    counts = [take(4) + 1 for _ in range(4)]
    if length != 4 * size[0] * size[1] or width > 8:
        raise ValueError
    values, done = np.zeros(length, np.uint8), 0
    while done < length:
        repeated, end = take(1), done + 1 + take(counts[take(2)])
        if repeated:
            values[done:end] = take(width)
        else:
            values[done:end] = [take(width) for _ in range(end - done)]
        done = end
    alpha = values[3::4].reshape(size)
    return (alpha > alpha.max() / 2).astype(np.uint8)
