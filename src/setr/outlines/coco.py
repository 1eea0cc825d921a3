"""COCO: a JSON file for many images, as COCO, CVAT, Label Studio, Roboflow and VIA export it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr.outlines.drawing import Part, Ring, Runs, Shape, as_counts, as_points
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem, split_of
from setr.reading.parsed import BROKEN, fault_of


def is_coco(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file is of this format."""
    return all(isinstance(content.get(k), list) for k in ("images", "annotations", "categories"))


class Coco:
    """Reads one COCO file into `out`.

    VIA's variant is accepted too: ids as strings, and a polygon without a list around it.
    """

    def __init__(
        self, name: str, content: Mapping[str, Any], index: ImageIndex, out: AnnotatedFolder
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
            self.out.problems.append(f"{self.name}: not valid COCO JSON ({fault_of(error)})")
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
