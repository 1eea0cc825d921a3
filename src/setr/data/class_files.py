"""Reads class names from files that annotation tools write beside their masks."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from setr.data.class_tables import names_of_json
from setr.data.layouts import COLOUR_FILE, COLOURS_FILE, SPLIT_NAMES
from setr.errors import DataError
from setr.reading.parsed import BROKEN, json_of

NAME_FILES = (
    *("classes.txt", "class_names.txt", "labels.txt", "classes.json", "_classes.csv"),
    "id2label.json",
)
_EXPECTED = {
    ".json": "a list of names, or {id: name}",
    ".csv": "the columns 'Pixel Value' and 'Class', as Roboflow does",
}
_COLOUR_LINES = {
    COLOUR_FILE: r"(?P<name>[^:]*):\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)\s*(:|$)",
    COLOURS_FILE: r"(?P<r>\d+)\s+(?P<g>\d+)\s+(?P<b>\d+)\s+(?P<name>.+)",
    "*class_dict*.csv": r"(?P<name>[^,]+),\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)$",
}
"""Files of class colours and their lines: CVAT's masks; CamVid, also from CVAT; Kaggle."""
_HEX_FILE = "class_list.json"
"""A2D2's file of class names by colour, as `{"#ff0000": "Car 1"}`."""
_VISTAS = "config*.json"
"""Mapillary Vistas' files of classes, whose labels are in the order of the ids."""


def names_by_id(root: Path) -> dict[int, str]:
    """Class names by id from a file in the root or in the folder of a split; empty without one.

    The file has one name per line, or is JSON or Roboflow's table. In CVAT's export as Cityscapes
    it is the file of colours, whose lines are in the order of the ids, in Mapillary Vistas its only
    configuration.

    Raises:
        SetrError: JSON or a table without class names.
    """
    folders = (".", *(folder for names in SPLIT_NAMES.values() for folder in names))
    for file in (root / folder / name for folder in folders for name in NAME_FILES):
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        if file.suffix in (".json", ".csv"):
            names = names_of_json(text) if file.suffix == ".json" else _csv_names(text)
            if names is None:
                raise DataError(f"{file}: no class names found; write {_EXPECTED[file.suffix]}")
            return names
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return dict(enumerate(lines[lines[:1] == ["__ignore__"] :]))  # labelme's name of id -1
    file = root / COLOURS_FILE
    if file.is_file() and (root / "gtFine").is_dir():
        return dict(enumerate(name for name, _ in _coloured_names(file, COLOURS_FILE)))
    found = [names for names in map(_vistas_names, sorted(root.glob(_VISTAS))) if names]
    return found[0] if len(found) == 1 else {}


def names_by_colour(root: Path) -> dict[int, str]:
    """Class names by colour (0xrrggbb) from a file in the root: one class per line, or A2D2's."""
    for pattern in _COLOUR_LINES:
        for file in sorted(root.glob(pattern)):
            return {colour: name for name, colour in _coloured_names(file, pattern)}
    file = root / _HEX_FILE
    text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
    try:
        found = json_of(text or "{}")
        return {int(colour.removeprefix("#"), 16): str(found[colour]) for colour in found}
    except BROKEN:
        return {}


def _coloured_names(file: Path, pattern: str) -> list[tuple[str, int]]:
    """The names and colours (0xrrggbb) of a file, one for each line."""
    names = []
    for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        found = re.match(_COLOUR_LINES[pattern], line.strip())
        values = [int(found[part]) for part in "rgb"] if found else [256]
        if found and max(values) < 256 and not line.startswith("#"):
            names.append((found["name"].strip(), values[0] << 16 | values[1] << 8 | values[2]))
    return names


def _vistas_names(file: Path) -> dict[int, str]:
    """Names by id from a configuration of Mapillary Vistas; empty for other files."""
    try:
        labels = json_of(file.read_text(encoding="utf-8-sig"))["labels"]
        readable = [str(label["readable"]) for label in labels]
        counted = [label["evaluate"] is not False for label in labels]
    except (OSError, *BROKEN):
        return {}
    return dict(enumerate(n if c else "ignore" for n, c in zip(readable, counted, strict=True)))


def _csv_names(text: str) -> dict[int, str] | None:
    """Names by id from Roboflow's `_classes.csv`; None for other tables."""
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    try:
        return {int(row["Pixel Value"]): row["Class"].strip() for row in rows} or None
    except (csv.Error, *BROKEN):
        return None
