"""What is known of a folder's outlines, and which image each belongs to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from setr.data.layouts import SPLIT_OF
from setr.outlines.drawing import Shape
from setr.reading.files import composed, stem_of

DRAWN = "masks_drawn"
"""Folder of the masks that are drawn; nothing in it is taken as an image."""
IGNORED, BACKGROUND = "__ignore__", "_background_"
"""Names that LabelMe gives to what is not counted, and to what no outline covers."""


class Annotated(NamedTuple):
    """An image with its outlines.

    Attributes:
        image: relative to the folder.
        shapes: its objects.
        source: the file that holds them, for messages.
        size: (H, W) that file gives the image; None if it gives none.
        split: that file is for; empty if it tells none.
    """

    image: str
    shapes: tuple[Shape, ...]
    source: str
    size: tuple[int, int] | None = None
    split: str = ""


@dataclass
class Outlined:
    """What a folder holds.

    Attributes:
        kind: LabelMe, Supervisely, V7, VIA, Label Studio, CVAT, COCO, COCO panoptic, YOLO or
            GeoJSON.
        largest_first: small objects lie over large ones, whatever their order in the file.
        classes: names in the order of their ids; of the first six, which have no
            ids, as in a file of classes or else sorted.
        images: each with its outlines.
        left_out: what is no area, by kind, with its number.
        problems: why the rest cannot be read, one line each.
        alone: images without a file of outlines.
        masks: files beside the images that hold their segments.
        notes: what else to tell.
    """

    kind: str
    largest_first: bool
    classes: tuple[str, ...] = ()
    images: list[Annotated] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    masks: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, what: str) -> None:
        """Count something that is no area."""
        self.left_out[what] = self.left_out.get(what, 0) + 1


class Images:
    """Images below the folder, found by what annotation files call them."""

    def __init__(self, names: list[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        for name in names:
            for key in {os.path.basename(composed(name)), os.path.basename(stem_of(name))}:
                self._by_name.setdefault(key, []).append(name)

    def has_folder_of(self, name: str) -> bool:
        """Whether a name has folders, and an image lies in them."""
        name = composed(name.replace("\\", "/"))
        return "/" in name and bool(self._at(name))

    def find(
        self, name: str, beside: str, split: str = "", *, in_folder: bool = False
    ) -> list[str]:
        """Images of that path or end of a path, of several those in the nearest place.

        Args:
            name: as an annotation file has it, with or without suffix.
            beside: that file.
            split: it is for.
            in_folder: take no image of that name in other folders than the name has.
        """
        name = composed(name.replace("\\", "/"))
        found = self._at(name)
        if not found and not (in_folder and "/" in name):
            found = self._by_name.get(os.path.basename(name), [])
        folder = os.path.dirname(beside)
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
    """The split that the last part of a path is called after: `annotations/instances_train2017`."""
    for part in reversed(path.lower().split("/")):
        for word in re.findall("[a-z]+", part):
            if word in SPLIT_OF:
                return SPLIT_OF[word]
    return ""


def not_one(source: str, image: str, found: list[str]) -> str:
    """That a file's image is not there, or may be several."""
    if found:
        return f"{source}: image '{image}' may be {' or '.join(found[:2])}"
    return f"{source}: image '{image}' is not there"
