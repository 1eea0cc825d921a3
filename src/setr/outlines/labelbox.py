"""Labelbox's exports: NDJSON with an image per line, its polygons, and addresses of its masks.

The addresses need an API key, so masks are read from files that are named after them. Format:
https://docs.labelbox.com/reference/export-image-annotations
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setr.outlines.drawing import Part, Ring, Shape, as_points
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.outlines.mask_files import MaskFile, Segments
from setr.reading.parsed import BROKEN, fault_of

_NO_AREA = ("bounding_box", "line", "point")
_NAMES = ("external_id", "global_key", "row_data")
"""Where the name of an image may be, in the order in which they are tried."""


def labelbox_rows(content: Any) -> list[dict[str, Any]]:
    """The images of a file; empty for other formats."""
    rows = content if isinstance(content, list) else [content]
    known = all(
        isinstance(row, dict)
        and isinstance(row.get("data_row"), dict)
        and isinstance(row.get("projects"), dict)
        for row in rows
    )
    return rows if known else []


class Labelbox:
    """Reads exports into `out`; later objects of an image are drawn over earlier ones.

    Args:
        out: receives the images.
    """

    def __init__(self, root: Path, index: ImageIndex, out: AnnotatedFolder) -> None:
        self.root, self.index, self.out = root, index, out

    def read(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add the images of a file that have a label; problems are recorded."""
        missing: dict[str, str] = {}
        for number, row in enumerate(rows, 1):
            try:
                self._row(name, row, missing)
            except BROKEN as error:
                self.out.problems.append(
                    f"{name}: image {number} is not valid Labelbox JSON ({fault_of(error)})"
                )
        if missing:
            file, address = next(iter(missing.items()))
            self.out.problems.append(
                f"{name}: {len(missing)} masks are only addresses, which need your API key of "
                f"Labelbox; download them below this folder, {address} as {file}, and so on"
            )

    def _row(self, name: str, row: Mapping[str, Any], missing: dict[str, str]) -> None:
        labels = [label for project in row["projects"].values() for label in project["labels"]]
        if not labels:
            return
        names = [str(row["data_row"][key]) for key in _NAMES if row["data_row"].get(key)]
        places = [self.index.find(image.partition("?")[0], name) for image in names]
        found = next((place for place in places if len(place) == 1), None)
        if found is None:
            self.out.problems.append(image_problem(name, names[0], places[0]))
            return
        media = row.get("media_attributes") or {}
        size = (int(media["height"]), int(media["width"])) if media.get("height") else None
        for label in labels:
            objects = [(o, self._part(o, missing)) for o in label["annotations"]["objects"]]
            shapes = (Shape(str(o["name"]), (part,)) for o, part in objects if part is not None)
            self.out.images.append(AnnotatedImage(found[0], tuple(shapes), name, size))

    def _part(self, given: Mapping[str, Any], missing: dict[str, str]) -> Part | None:
        """An object's area; None for boxes, lines, points and missing masks.

        Files of masks are called after the part of the address behind `masks` if they hold all
        objects of an image, each in its colour, and after the object's id if they hold only it.

        Args:
            missing: receives the address of a mask without a file, by the name of this file.
        """
        if "polygon" in given:
            return Ring(as_points([(point["x"], point["y"]) for point in given["polygon"]]))
        if "composite_mask" not in given and "mask" not in given:
            if not set(_NO_AREA) & set(given):
                raise ValueError(f"cannot read {given.get('annotation_kind')}")
            self.out.leave_out(f"Labelbox's {given.get('annotation_kind')}")
            return None
        single, joint = f"{given['feature_id']}.png", given.get("composite_mask")
        address = str((joint or given["mask"])["url"])
        key = address.partition("/masks/")[2].partition("/")[0] if joint else ""
        shared = f"{key}.png" if key else single
        for file in (shared, single):
            found = self.index.find(file, "")
            if len(found) != 1:
                continue
            self.out.masks.add(found[0])
            if file == single:
                return MaskFile(self.root / found[0])
            red, green, blue = map(int, given["composite_mask"]["color_rgb"])
            return Segments(self.root / found[0], (red + 256 * green + 65536 * blue,))
        missing[shared] = address
        return None
