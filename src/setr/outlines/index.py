"""The annotations of a folder, and finding the images that annotation files refer to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from setr.data.layouts import SPLIT_OF
from setr.outlines.drawing import Shape
from setr.reading.files import composed, stem_of

IGNORED, BACKGROUND = "__ignore__", "_background_"
"""LabelMe's class names for ignored pixels and for pixels outside all outlines."""


class AnnotatedImage(NamedTuple):
    """An image with its outlines.

    Attributes:
        image: path relative to the folder.
        shapes: its objects.
        source: the annotation file, for messages; empty if the shapes name their own files.
        size: (H, W) of the image according to that file; None if not given.
        split: according to that file; empty if not given.
    """

    image: str
    shapes: tuple[Shape, ...]
    source: str
    size: tuple[int, int] | None = None
    split: str = ""


@dataclass
class AnnotatedFolder:
    """The annotations of a folder.

    Attributes:
        kind: LabelMe, Supervisely, V7, VIA, Label Studio, Labelbox, CVAT, COCO, COCO panoptic,
            YOLO, or GeoJSON, Shapefile and GeoPackage or several of these.
        largest_first: draw small objects over large ones, whatever their order in the file.
        classes: names in the order of their ids. The first seven formats have no ids: the order of
            a classes file or, without one, alphabetical.
        images: with their outlines.
        left_out: number of annotations without an area, by type.
        problems: what could not be read, one line each.
        unannotated: images that no annotation file mentions.
        masks: files next to the images that are masks: panoptic PNG files, and Labelbox's.
        notes: further messages for the user.
        tells_overlaps: nobody sees classes over each other when drawing them, so it is told.
        has_properties: the class is a property, chosen by `--class-key`.
    """

    kind: str
    largest_first: bool
    classes: tuple[str, ...] = ()
    images: list[AnnotatedImage] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unannotated: list[str] = field(default_factory=list)
    masks: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    tells_overlaps: bool = False
    has_properties: bool = False

    def leave_out(self, what: str) -> None:
        """Count an annotation without an area."""
        self.left_out[what] = self.left_out.get(what, 0) + 1

    def order_classes(self, first: Iterable[str]) -> None:
        """Set the classes: first those that a file lists, then others that occur, by name."""
        named = {shape.name for entry in self.images for shape in entry.shapes}
        listed = [name for name in dict.fromkeys(first) if name not in (IGNORED, BACKGROUND)]
        self.classes = (*listed, *sorted(named - {IGNORED, BACKGROUND, *listed}))


class ImageIndex:
    """Finds images below a folder by the names in annotation files."""

    def __init__(self, names: list[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        for name in names:
            for key in {os.path.basename(composed(name)), os.path.basename(stem_of(name))}:
                self._by_name.setdefault(key, []).append(name)

    def has_folder_of(self, name: str) -> bool:
        """Whether a name includes a folder and an image with that path exists."""
        name = composed(name.replace("\\", "/"))
        return "/" in name and bool(self._at(name))

    def find(
        self, name: str, source: str, split: str = "", *, in_folder: bool = False
    ) -> list[str]:
        """Images whose path ends with a name; of several, the nearest to the annotation file.

        Args:
            name: as in the annotation file, with or without suffix.
            source: the annotation file.
            split: of the annotation file, to choose between several images.
            in_folder: if the name includes a folder, do not accept images in other folders.
        """
        name = composed(name.replace("\\", "/"))
        found = self._at(name)
        if not found and not (in_folder and "/" in name):
            found = self._by_name.get(os.path.basename(name), [])
        folder = os.path.dirname(source)
        for nearer in (
            [f for f in found if os.path.dirname(f) == folder],
            [f for f in found if f.startswith(f"{folder}/")],
            [f for f in found if split and split_of(os.path.dirname(f)) == split],
        ):
            if len(found) > 1 and nearer:
                found = nearer
        return found

    def _at(self, name: str) -> list[str]:
        found = self._by_name.get(os.path.basename(name), [])
        paths = [f"/{composed(f)}" for f in found]
        fits = [path.endswith(f"/{name}") or path.startswith(f"/{name}.") for path in paths]
        return [f for f, fit in zip(found, fits, strict=True) if fit]


def split_of(path: str) -> str:
    """The split in the last part of a path that names one: `annotations/instances_train2017`."""
    for part in reversed(path.lower().split("/")):
        for word in re.findall("[a-z]+", part):
            if word in SPLIT_OF:
                return SPLIT_OF[word]
    return ""


def image_problem(source: str, image: str, found: list[str]) -> str:
    """Message for an image that was not found, or found several times."""
    if found:
        return f"{source}: image '{image}' may be {' or '.join(found[:2])}"
    return f"{source}: image '{image}' not found"
