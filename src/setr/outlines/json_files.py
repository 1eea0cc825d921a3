"""Outlines in JSON, and what is read together with them: map layers, and VIA's tables.

Every format has its own module.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from setr.data.class_files import names_by_id
from setr.outlines.coco import Coco, is_coco
from setr.outlines.darwin import is_darwin, read_darwin
from setr.outlines.index import AnnotatedFolder, ImageIndex
from setr.outlines.label_studio import label_studio_tasks, read_label_studio
from setr.outlines.labelbox import Labelbox, labelbox_rows
from setr.outlines.labelme import is_labelme, read_labelme
from setr.outlines.layers import Layers
from setr.outlines.panoptic import is_panoptic, read_panoptic
from setr.outlines.supervisely import is_supervisely, read_supervisely, supervisely_classes
from setr.outlines.via import is_via, read_via
from setr.outlines.via_forms import via_table
from setr.reading.files import walk_images
from setr.reading.vectors import FORMATS


def _labelbox_lines(data: bytes) -> list[Any]:
    """The lines of an export of Labelbox; none of other files, such as logs that are cut off."""
    lines = data.splitlines() if b'"data_row"' in data else []
    return [json.loads(line) for line in lines if line.strip()]


_READERS: dict[str, tuple[str, Callable[[bytes], Any]]] = {
    ".json": ("JSON", json.loads),
    ".geojson": ("JSON", json.loads),
    ".ndjson": ("JSON in each line", _labelbox_lines),
    ".jsonl": ("JSON in each line", _labelbox_lines),
    ".csv": ("a table of VIA", via_table),
}
"""By file ending, what a file is, and the function that gives its content as JSON has it."""


def json_outlines(
    root: Path, images: list[str], index: ImageIndex, class_key: str, broken: list[str]
) -> Iterator[AnnotatedFolder]:
    """The outlines of JSON and layer files, by format; `class_key` is for VIA and layers.

    Files that cannot be read are added to `broken`, and are problems of what is found in others.
    """
    formats = _Formats(root, images, index, class_key)
    unread: list[str] = []
    for name in walk_images(root, frozenset(_READERS)):
        kind, read = _READERS[os.path.splitext(name)[1].lower()]
        try:
            content = read((root / name).read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            unread.append(f"{name}: not {kind} ({' '.join(str(error).split())[:80]})")
        else:
            formats.read(name, content)
    broken += unread
    for annotated in formats.finished():
        if annotated.images or annotated.problems:
            annotated.problems += unread
            yield annotated


class _Formats:
    """What the JSON files of a folder contain, by format."""

    def __init__(self, root: Path, images: list[str], index: ImageIndex, class_key: str) -> None:
        self.root, self.images, self.index, self.class_key = root, images, index, class_key
        self.labelme, self.coco = AnnotatedFolder("LabelMe", False), AnnotatedFolder("COCO", True)
        self.supervisely = AnnotatedFolder("Supervisely", False)
        self.via = AnnotatedFolder("VIA", False, has_properties=True)
        self.studio = AnnotatedFolder("Label Studio", False)
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
        if isinstance(content, list) and any(map(_is_feature, content)):  # as QuPath may write it
            content = {"type": "FeatureCollection", "features": content}
        if not isinstance(content, dict):
            return
        if is_labelme(content):
            read_labelme(name, content, self.index, self.labelme)
        elif is_panoptic(content):
            read_panoptic(self.root, name, content, self.index, self.panoptic)
        elif is_darwin(content):
            read_darwin(name, content, self.index, self.darwin)
        elif is_coco(content):
            Coco(name, content, self.index, self.coco).read()
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
            annotated.order_classes(first)
        if not self.coco.images:
            self.coco.problems += self.coco.notes
        layers = Layers(self.root, self.images, self.index, known, self.class_key)
        for name, content in self.layers.items():
            layers.read(name, content)
        for name in walk_images(self.root, frozenset(FORMATS)):
            layers.read_file(name)
        return (*by_name, self.coco, self.panoptic, layers.annotated())


def _is_feature(value: Any) -> bool:
    """Whether this is a feature of GeoJSON."""
    return isinstance(value, dict) and value.get("type") == "Feature" and "geometry" in value
