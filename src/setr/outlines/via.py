"""VGG Image Annotator (VIA 1 to 3): a JSON or CSV file for many images, project or export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setr.outlines.drawing import Part, Ring, Shape, as_points, ellipse
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.outlines.layers import CLASS_KEYS
from setr.outlines.via_forms import from_via3, is_project_of_via3
from setr.reading.parsed import BROKEN, fault_of

DEFAULT_CLASS = "object"
"""Class of the regions of a file without attributes."""


def is_via(content: Mapping[str, Any]) -> bool:
    """Whether a file is of this format."""
    if is_project_of_via3(content):
        return True
    images = content.get("_via_img_metadata", content)
    return (
        isinstance(images, dict)
        and bool(images)
        and all(isinstance(i, dict) and {"filename", "regions"} <= set(i) for i in images.values())
    )


def read_via(
    name: str, content: Mapping[str, Any], index: ImageIndex, out: AnnotatedFolder, class_key: str
) -> None:
    """Add the images of a file and its regions; later ones are drawn over earlier ones.

    Args:
        index: the images of the folder.
        out: receives the images, and the attribute's options as classes.
        class_key: attribute that names the class; empty for the usual ones, or the only one.
    """
    try:
        content = from_via3(content) if is_project_of_via3(content) else content
        images = content.get("_via_img_metadata", content).values()
        listed = [(str(image["filename"]), _values(image["regions"])) for image in images]
        given = dict.fromkeys(k for _, regions in listed for r in regions for k in _attributes(r))
    except BROKEN as error:
        out.problems.append(f"{name}: cannot be read as a file of VIA ({fault_of(error)})")
        return
    candidates = (class_key,) if class_key else CLASS_KEYS
    keys = [k for c in candidates for k in given if k.lower() == c.lower()]
    key = next(iter(keys or given), "")
    if not keys and (class_key or len(given) > 1):
        out.problems.append(
            f"{name}: which attribute names the class? regions have {', '.join(given) or 'none'}; "
            "give it as --class-key"
        )
        return
    if not key and any(regions for _, regions in listed):
        out.notes.append(f"{name}: regions have no attributes: all of class '{DEFAULT_CLASS}'")
    out.classes = tuple(dict.fromkeys((*out.classes, *_options(content, key))))
    for image_name, regions in listed:
        found = index.find(image_name, name)
        if len(found) != 1:
            out.problems.append(image_problem(name, image_name, found))
            continue
        shapes = []
        for number, region in enumerate(regions, 1):
            try:
                part = _part(region["shape_attributes"])
                if part is None:
                    out.leave_out(f"VIA's {region['shape_attributes']['name']}")
                else:
                    class_name = _class_name(_attributes(region)[key]) if key else DEFAULT_CLASS
                    shapes.append(Shape(class_name, (part,)))
            except BROKEN:
                what = f"no class in its attribute '{key}', or " if key else ""
                out.problems.append(f"{name}: {image_name}: region {number} has {what}no points")
        out.images.append(AnnotatedImage(found[0], tuple(shapes), name))


def _values(regions: Any) -> list[Any]:
    """The regions of an image: a list, or a dictionary in VIA 1."""
    return list(regions.values() if isinstance(regions, dict) else regions)


def _attributes(region: Mapping[str, Any]) -> Mapping[str, Any]:
    found = region.get("region_attributes")
    return found if isinstance(found, dict) else {}


def _options(content: Mapping[str, Any], key: str) -> list[str]:
    """The attribute's options, if the project lists them."""
    try:
        return [str(name) for name in content["_via_attributes"]["region"][key]["options"]]
    except BROKEN:
        return []


def _class_name(value: Any) -> str:
    """Class name: the text, or the only option that is ticked."""
    if isinstance(value, dict):
        (value,) = (option for option, ticked in value.items() if ticked)
    if not str(value).strip():
        raise ValueError
    return str(value).strip()


def _part(shape: Mapping[str, Any]) -> Part | None:
    """A region's area; None for lines and points."""
    kind = shape["name"]
    if kind == "polygon":
        return Ring(as_points([*zip(shape["all_points_x"], shape["all_points_y"], strict=True)]))
    if kind == "rect":
        x, y, w, h = (float(shape[side]) for side in ("x", "y", "width", "height"))
        return Ring(as_points([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]))
    if kind in ("circle", "ellipse"):
        a, b = (shape[side] for side in (("r", "r") if kind == "circle" else ("rx", "ry")))
        centre = float(shape["cx"]), float(shape["cy"])
        return ellipse(centre, (float(a), float(b)), float(shape.get("theta") or 0))
    return None
