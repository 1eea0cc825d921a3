"""Finding the outlines that annotation tools write next to images.

LabelMe, Supervisely and V7: a JSON file per image. COCO: a JSON file for many images, as exported
by COCO, CVAT, Label Studio and Roboflow, or a panoptic one with a PNG per image. VGG Image
Annotator (also CSV), Label Studio and Labelbox: their own JSON for many images. CVAT for images: an
XML file for many images. GeoJSON, Shapefile, GeoPackage: a file for one image, or layers over many.
YOLO: a text file per image with lines `class x y x y x y …` in fractions of width and height.
"""

from __future__ import annotations

from pathlib import Path

from setr.data.flat_pairs import files_below
from setr.errors import DataError
from setr.outlines.cvat import cvat_outlines
from setr.outlines.index import AnnotatedFolder, ImageIndex
from setr.outlines.json_files import json_outlines
from setr.outlines.yolo import yolo_outlines


def find_outlines(
    root: Path, class_key: str, broken: list[str], yolo_file: Path | None = None
) -> AnnotatedFolder | None:
    """The outlines below a folder, or None if there are none.

    Args:
        class_key: property of layers or attribute of VIA that names the class; empty for the usual.
        broken: receives the files that cannot be read, one line each.
        yolo_file: YAML file of Ultralytics that describes the folder, if it is known.

    Raises:
        SetrError: several annotation formats, or an image with outlines in two files or twice in
            one (exit code 3).
    """
    images = files_below(root)
    if not images:
        return None
    index = ImageIndex(images)
    formats = (
        *json_outlines(root, images, index, class_key, broken),
        cvat_outlines(root, index, broken),
        yolo_outlines(root, images, index, yolo_file),
    )
    found = [annotated for annotated in formats if annotated]
    if len(found) > 1:
        kinds = " and ".join(annotated.kind for annotated in found)
        raise DataError(f"{root}: contains outlines of {kinds}; keep one of them in the folder")
    if not found:
        return None
    _refuse_doubles(root, found[0])
    described = {entry.image for entry in found[0].images} | found[0].masks
    found[0].unannotated = [name for name in images if name not in described]
    return found[0]


def _refuse_doubles(root: Path, annotated: AnnotatedFolder) -> None:
    sources: dict[str, str] = {}
    for entry in annotated.images:
        other = sources.get(entry.image)
        if other == entry.source:
            raise DataError(
                f"{root}: {other} lists the image {entry.image} twice, perhaps by two annotators; "
                "merge the annotations into one entry, or remove one of the two"
            )
        if other is not None:
            raise DataError(
                f"{root}: {entry.image} has outlines in {other} and in {entry.source}; keep one "
                "of these files in the folder"
            )
        sources[entry.image] = entry.source
