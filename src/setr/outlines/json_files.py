"""Outlines in JSON: LabelMe and COCO are read here, other formats by their own modules.

Map layers in other files than JSON are read together with GeoJSON, and VIA's tables as its JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from setr.data.class_files import names_by_id
from setr.outlines.darwin import is_darwin, read_darwin
from setr.outlines.drawing import Part, Patch, Ring, Runs, Shape, as_counts, as_points
from setr.outlines.index import (
    BACKGROUND,
    IGNORED,
    AnnotatedFolder,
    AnnotatedImage,
    ImageIndex,
    image_problem,
    split_of,
)
from setr.outlines.label_studio import label_studio_tasks, read_label_studio
from setr.outlines.labelbox import Labelbox, labelbox_rows
from setr.outlines.layers import BROKEN, Layers
from setr.outlines.panoptic import is_panoptic, read_panoptic
from setr.outlines.supervisely import is_supervisely, read_supervisely, supervisely_classes
from setr.outlines.via import is_via, read_via
from setr.outlines.via_forms import via_table
from setr.reading.files import walk_images
from setr.reading.vectors import FORMATS


def _json_lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines() if line.strip()]


_READERS: dict[str, tuple[str, Callable[[bytes], Any]]] = {
    ".json": ("JSON", json.loads),
    ".geojson": ("JSON", json.loads),
    ".ndjson": ("JSON in each line", _json_lines),
    ".jsonl": ("JSON in each line", _json_lines),
    ".csv": ("a table of VIA", via_table),
}
"""By file ending, what a file is, and the function that gives its content as JSON has it."""


def json_outlines(
    root: Path, images: list[str], index: ImageIndex, class_key: str
) -> Iterator[AnnotatedFolder]:
    """The outlines of JSON and layer files, by format; `class_key` is for VIA and layers."""
    formats = _Formats(root, images, index, class_key)
    broken: list[str] = []
    for name in walk_images(root, frozenset(_READERS)):
        kind, read = _READERS[os.path.splitext(name)[1].lower()]
        try:
            content = read((root / name).read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            broken.append(f"{name}: not {kind} ({' '.join(str(error).split())[:80]})")
        else:
            formats.read(name, content)
    for annotated in formats.finished():
        if annotated.images or annotated.problems:
            annotated.problems += broken
            yield annotated


class _Formats:
    """What the JSON files of a folder contain, by format."""

    def __init__(self, root: Path, images: list[str], index: ImageIndex, class_key: str) -> None:
        self.root, self.images, self.index, self.class_key = root, images, index, class_key
        self.labelme, self.coco = AnnotatedFolder("LabelMe", False), AnnotatedFolder("COCO", True)
        self.supervisely = AnnotatedFolder("Supervisely", False)
        self.via, self.studio = (
            AnnotatedFolder("VIA", False, has_properties=True),
            AnnotatedFolder("Label Studio", False),
        )
        self.darwin = AnnotatedFolder("V7", False)
        self.labelbox = AnnotatedFolder("Labelbox", False)
        self.panoptic = AnnotatedFolder("COCO panoptic", False)
        self.described: list[str] = []  # classes of Supervisely
        self.layers: dict[str, dict[str, Any]] = {}  # GeoJSON by file, read last

    def read(self, name: str, content: Any) -> None:
        """Read a file of any known format; others are passed over."""
        if tasks := label_studio_tasks(content):
            read_label_studio(name, tasks, self.index, self.studio)
        elif rows := labelbox_rows(content):
            Labelbox(self.root, self.index, self.labelbox).read(name, rows)
        if not isinstance(content, dict):
            return
        if isinstance(content.get("shapes"), list) and "imagePath" in content:
            _labelme(name, content, self.index, self.labelme)
        elif is_panoptic(content):
            read_panoptic(self.root, name, content, self.index, self.panoptic)
        elif is_darwin(content):
            read_darwin(name, content, self.index, self.darwin)
        elif all(isinstance(content.get(k), list) for k in ("images", "annotations", "categories")):
            _Coco(name, content, self.index, self.coco).read()
        elif is_supervisely(content):
            read_supervisely(name, content, self.index, self.supervisely)
        elif is_via(content):
            read_via(name, content, self.index, self.via, self.class_key)
        elif os.path.basename(name) == "meta.json":
            self.described += supervisely_classes(content)
        elif content.get("type") == "FeatureCollection" and isinstance(
            content.get("features"), list
        ):
            self.layers[name] = content

    def finished(self) -> tuple[AnnotatedFolder, ...]:
        """All formats with their classes, once all files are read."""
        known = names_by_id(self.root)
        by_name = (
            *(self.labelme, self.supervisely, self.darwin),
            *(self.via, self.studio, self.labelbox),
        )
        listed_first = {"Supervisely": self.described, "VIA": self.via.classes}
        for annotated in by_name:
            first = listed_first.get(annotated.kind) or known.values()
            annotated.classes = _classes_in_order(annotated, first)
        if not self.coco.images:
            self.coco.problems += self.coco.notes
        layers = Layers(self.root, self.images, self.index, known, self.class_key)
        for name, content in self.layers.items():
            layers.read(name, content)
        for name in walk_images(self.root, frozenset(FORMATS)):
            layers.read_file(name)
        return (*by_name, self.coco, self.panoptic, layers.annotated())


def _classes_in_order(annotated: AnnotatedFolder, first: Iterable[str]) -> tuple[str, ...]:
    """The classes: first those that a file lists, then others that occur, by name."""
    named = {shape.name for entry in annotated.images for shape in entry.shapes}
    listed = [n for n in dict.fromkeys(first) if n not in (IGNORED, BACKGROUND)]
    return (*listed, *sorted(named - {IGNORED, BACKGROUND, *listed}))


# --- LabelMe --------------------------------------------------------------------------------------


def _labelme(name: str, content: dict[str, Any], index: ImageIndex, out: AnnotatedFolder) -> None:
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
            part = _labelme_part(shape)
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


def _labelme_part(shape: Mapping[str, Any]) -> Part | None:
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


# --- COCO -----------------------------------------------------------------------------------------


class _Coco:
    """Reads one COCO file into `out`.

    VIA's variant is accepted too: ids as strings, and a polygon without a list around it.
    """

    def __init__(
        self, name: str, content: dict[str, Any], index: ImageIndex, out: AnnotatedFolder
    ) -> None:
        self.name, self.content, self.index, self.out = name, content, index, out
        self.split, self.in_folder = split_of(name), False

    def read(self) -> None:
        """Add the images and their annotations, and new classes."""
        try:
            categories = sorted(self.content["categories"], key=lambda category: category["id"])
            names = {str(c["id"]): str(c["name"]) for c in categories}
            groups = {c.get("supercategory") for c in categories}
            used = {str(a["category_id"]) for a in self.content["annotations"]}
            by_image: dict[str, list[Shape]] = {str(i["id"]): [] for i in self.content["images"]}
            files = [image["file_name"] for image in self.content["images"]]
            self.in_folder = any(map(self.index.has_folder_of, files))
            for annotation in self.content["annotations"]:
                self._add(annotation, names, by_image)
            found = [
                self._image(image, by_image[str(image["id"])]) for image in self.content["images"]
            ]
            named = [name for i, name in names.items() if i in used or name not in groups]
        except BROKEN as error:
            self.out.problems.append(f"{self.name}: not valid COCO JSON ({error!r})")
            return
        missing = [text for text in found if isinstance(text, str)]
        if found and len(missing) == len(found):
            self.out.notes.append(f"{self.name}: none of its {len(found)} images was found")
            return
        self.out.problems += missing
        self.out.images += [entry for entry in found if isinstance(entry, AnnotatedImage)]
        self.out.classes = tuple(dict.fromkeys((*self.out.classes, *named)))

    def _image(self, image: Mapping[str, Any], shapes: list[Shape]) -> AnnotatedImage | str:
        images = self.index.find(
            image["file_name"], self.name, self.split, in_folder=self.in_folder
        )
        if len(images) != 1:
            return image_problem(self.name, image["file_name"], images)
        size = (int(image["height"]), int(image["width"])) if image.get("height") else None
        return AnnotatedImage(images[0], tuple(shapes), self.name, size, self.split)

    def _add(
        self, annotation: Mapping[str, Any], names: dict[str, str], by_image: dict[str, list[Shape]]
    ) -> None:
        area = annotation.get("segmentation")
        if not area or area == [[]]:
            self.out.leave_out("annotations without an outline")
            return
        try:
            parts: tuple[Part, ...]
            if isinstance(area, dict):
                H, W = area["size"]
                parts = (Runs((int(H), int(W)), as_counts(area["counts"])),)
            else:
                rings = area if isinstance(area[0], list) else [area]
                parts = tuple(Ring(as_points(ring)) for ring in rings)
            shape = Shape(names[str(annotation["category_id"])], parts)
            by_image[str(annotation["image_id"])].append(shape)
        except BROKEN:
            self.out.problems.append(
                f"{self.name}: annotation {annotation.get('id')}: unknown category or image, or a "
                "polygon of fewer than three points"
            )
