"""COCO's panoptic format: a JSON file, and a PNG of segment ids per image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setr.outlines.drawing import Shape
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem, split_of
from setr.outlines.mask_files import Segments
from setr.reading.parsed import BROKEN, fault_of


def is_panoptic(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file is of this format."""
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return isinstance(first, dict) and "segments_info" in first


def read_panoptic(
    root: Path, name: str, content: Mapping[str, Any], index: ImageIndex, out: AnnotatedFolder
) -> None:
    """Add the images of a file, with one shape per class.

    The PNG files are looked for in the folder with the name of the JSON file, then everywhere.
    """
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        classes = {category["id"]: str(category["name"]) for category in categories}
        images = {image["id"]: image for image in content["images"]}
        numbers = [_segments(annotation, classes) for annotation in content["annotations"]]
        files = [(images[a["image_id"]], str(a["file_name"])) for a in content["annotations"]]
        sizes = [(int(image["height"]), int(image["width"])) for image, _ in files]
        image_names = [str(image["file_name"]) for image, _ in files]
    except BROKEN as error:
        out.problems.append(f"{name}: not valid COCO panoptic JSON ({fault_of(error)})")
        return
    folder, split = os.path.splitext(name)[0], split_of(name)
    masks = [index.find(f"{folder}/{f}", name) or index.find(f, name) for _, f in files]
    out.masks |= {found[0] for found in masks if len(found) == 1}
    for (_, file), image, mask, size, segments in zip(
        files, image_names, masks, sizes, numbers, strict=True
    ):
        found = [f for f in index.find(image, name, split) if f not in out.masks]
        if len(found) != 1 or len(mask) != 1:
            missing = (image, found) if len(found) != 1 else (file, mask)
            out.problems.append(image_problem(name, *missing))
            continue
        shapes = (Shape(c, (Segments(root / mask[0], tuple(n)),)) for c, n in segments.items())
        out.images.append(AnnotatedImage(found[0], tuple(shapes), name, size, split))
    out.classes = tuple(dict.fromkeys((*out.classes, *classes.values())))


def _segments(annotation: Mapping[str, Any], classes: Mapping[Any, str]) -> dict[str, list[int]]:
    """Segment ids of each class in an image."""
    numbers: dict[str, list[int]] = {}
    for segment in annotation["segments_info"]:
        numbers.setdefault(classes[segment["category_id"]], []).append(int(segment["id"]))
    return numbers
