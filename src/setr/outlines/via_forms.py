"""The files of VIA in one form, that of VIA 2's JSON: CSV exports, and projects of VIA 3.

VIA 3 numbers attributes, their options and shapes: `_via_metadata.js` and `_via_attribute.js` of
https://gitlab.com/vgg/via
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from typing import Any

from setr.data.pairing import is_file

VIA_2 = "filename,file_size,file_attributes,region_count,region_id,"
"""Start of the first line of VIA 2's CSV; version 1.0 has a # before it."""
VIA_3 = "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,"
_ATTRIBUTES = "# ATTRIBUTE = "
_IMAGE = 2
"""Type of VIA 3's files that are images."""
_SHAPES = {1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon"}
_SIDES = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}


def via_table(data: bytes) -> dict[str, Any] | None:
    """The content of a CSV file as JSON of VIA 2 or 3; None for other tables.

    Raises:
        ValueError: a line that does not follow the format.
    """
    if VIA_2.encode() not in data[:100] and VIA_3.encode() not in data:
        return None
    lines = [line.decode("utf-8-sig", "replace") for line in data.splitlines()]
    if lines[0].lstrip("#").startswith(VIA_2):
        return _table_of_via2(lines)
    return _table_of_via3(lines)


def _table_of_via2(lines: list[str]) -> dict[str, Any]:
    images: dict[str, dict[str, Any]] = {}
    for row in _rows(lines[1:], 7):
        image = images.setdefault(row[0], {"filename": row[0], "regions": []})
        shape, attributes = json.loads(row[5]), json.loads(row[6])
        if shape:  # images without regions have a line, too
            region = {"shape_attributes": shape, "region_attributes": attributes}
            image["regions"].append(region)
    return images


def _table_of_via3(lines: list[str]) -> dict[str, Any]:
    """As a project; files without regions are not listed."""
    described = next((line for line in lines if line.startswith(_ATTRIBUTES)), "")
    content: dict[str, Any] = {
        "attribute": json.loads(described.removeprefix(_ATTRIBUTES) or "{}"),
        "file": {},
        "view": {},
        "metadata": {},
    }
    for number, files, _, times, shape, values in _rows(
        [line for line in lines if not line.startswith("#")], 6
    ):
        names = json.loads(files)
        content["file"] |= {name: {"fname": name, "type": _IMAGE} for name in names}
        content["view"][files] = {"fid_list": names}
        content["metadata"][number] = {
            "vid": files,
            "z": json.loads(times),
            "xy": json.loads(shape),
            "av": json.loads(values),
        }
    return content


def _rows(lines: list[str], columns: int) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(lines, strict=True) if row]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    wrong = next((row for row in rows if len(row) != columns), None)
    if wrong is not None:
        raise ValueError(f"{len(wrong)} instead of {columns} columns in '{','.join(wrong)[:40]}'")
    return rows


def is_project_of_via3(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file is a project of VIA 3."""
    return all(isinstance(content.get(k), dict) for k in ("attribute", "file", "view", "metadata"))


def from_via3(content: Mapping[str, Any]) -> dict[str, Any]:
    """A project of VIA 3 as one of VIA 2; a region that cannot be read becomes an empty one.

    Raises:
        ValueError: a region of a video, or of several files.
    """
    files, attributes = content["file"], content["attribute"]
    images: dict[str, dict[str, Any]] = {}
    for key, view in content["view"].items():
        if len(view["fid_list"]) != 1:
            raise ValueError(f"view {key} shows {len(view['fid_list'])} files")
        given = files[str(view["fid_list"][0])]
        if given["type"] != _IMAGE:
            raise ValueError(f"'{given['fname']}' is no image")
        name = given["fname"] if is_file(given["fname"]) else given.get("src", given["fname"])
        images[str(key)] = {"filename": name, "regions": []}
    for entry in content["metadata"].values():
        if entry["z"]:
            raise ValueError("a region of a video")
        if entry["xy"]:  # else of the whole image
            images[str(entry["vid"])]["regions"].append(_region(entry, attributes))
    options = {
        str(given["aname"]): {"options": dict.fromkeys((given.get("options") or {}).values(), "")}
        for given in attributes.values()
    }
    return {"_via_img_metadata": images, "_via_attributes": {"region": options}}


def _region(entry: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    number, *values = entry["xy"]
    if number not in _SHAPES:
        return {}
    shape: dict[str, Any] = {"name": _SHAPES[number]}
    if shape["name"] == "polygon":
        shape |= {"all_points_x": values[::2], "all_points_y": values[1::2]}
    else:
        shape |= dict(zip(_SIDES.get(shape["name"], ()), values, strict=False))
    given = {
        str(attributes[key]["aname"]): _value(value, attributes[key].get("options") or {})
        for key, value in entry["av"].items()
    }
    return {"shape_attributes": shape, "region_attributes": given}


def _value(value: Any, options: Mapping[str, str]) -> Any:
    """The value of an attribute: text, or the options that are chosen, given by their numbers."""
    chosen = str(value).split(",")
    return {options[c]: True for c in chosen} if options and set(chosen) <= set(options) else value
