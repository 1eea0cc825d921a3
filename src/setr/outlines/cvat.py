"""CVAT for images 1.1: an XML file for many images, with polygons, masks and ellipses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from setr.data.layouts import SPLIT_OF
from setr.images import encode_png
from setr.outlines.drawing import Part, Patch, Ring, Shape, as_points, ellipse, unrolled
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.reading.files import walk_images
from setr.reading.parsed import BROKEN

_NO_AREA = ("box", "polyline", "points", "cuboid", "skeleton")


def cvat_outlines(root: Path, index: ImageIndex, broken: list[str]) -> AnnotatedFolder | None:
    """The outlines of all CVAT XML files, or None; a larger `z_order` is drawn on top.

    XML that cannot be read is added to `broken`, and is a problem of what is found in others.
    """
    out, classes = AnnotatedFolder("CVAT", False), dict[str, None]()
    unread: list[str] = []
    for name in walk_images(root, frozenset({".xml"})):
        try:
            tree = ElementTree.parse(root / name).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # or encoding
            unread.append(f"{name}: not XML that can be read ({error!s:.80})")
            continue
        if tree.tag != "annotations":
            continue
        if tree.find("track") is not None:
            out.problems.append(f"{name}: tracks of a video; export it as 'CVAT for images'")
        labels = (label.findtext("name") for label in tree.iterfind("meta//labels/label"))
        classes |= dict.fromkeys(label for label in labels if label)
        for image in tree.iterfind("image"):
            _image(name, image, index, out)
    broken += unread
    out.order_classes(classes)
    if not out.images and not out.problems:
        return None
    out.problems += unread
    return out


def _order(shape: ElementTree.Element) -> float:
    """Its `z_order`; 0 if missing or not a number."""
    try:
        return float(shape.get("z_order") or 0)
    except ValueError:
        return 0.0


def _image(name: str, image: ElementTree.Element, index: ImageIndex, out: AnnotatedFolder) -> None:
    image_name, split = image.get("name", ""), SPLIT_OF.get(image.get("subset", "").lower(), "")
    images = index.find(image_name, name, split)
    if len(images) != 1:
        out.problems.append(image_problem(name, image_name, images))
        return
    shapes = []
    for given in sorted(image, key=_order):
        if given.tag in _NO_AREA:
            out.leave_out(f"CVAT's {given.tag}")
            continue
        try:
            part = _part(given.tag, given.attrib)
            if part is not None:
                shapes.append(Shape(given.attrib["label"], (part,)))
        except BROKEN:
            out.problems.append(
                f"{name}: {image_name}: a {given.tag} without a label or its points"
            )
    try:
        size = int(image.attrib["height"]), int(image.attrib["width"])
    except BROKEN:
        size = None
    out.images.append(AnnotatedImage(images[0], tuple(shapes), name, size, split))


def _part(kind: str, given: Mapping[str, str]) -> Part | None:
    """A shape's area; None for tags."""
    if kind == "polygon":
        return Ring(as_points([point.split(",") for point in given["points"].split(";")]))
    if kind == "ellipse":
        x, y, a, b = (float(given[key]) for key in ("cx", "cy", "rx", "ry"))
        return ellipse((x, y), (a, b), math.radians(float(given.get("rotation") or 0)))
    if kind == "mask":  # row-major run lengths that begin with background
        lengths = np.array(given["rle"].split(","), np.int64)
        W, H = int(given["width"]), int(given["height"])
        inside = unrolled((np.arange(len(lengths)) % 2).astype(np.uint8), lengths, (H, W))
        return Patch(int(given["top"]), int(given["left"]), encode_png(inside))
    return None
