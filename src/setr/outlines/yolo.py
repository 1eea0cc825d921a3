"""YOLO: a text file per image with lines `class x y x y x y …` in fractions of width and height."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import yaml

from setr.data.class_files import names_by_id
from setr.data.configured import described_folder
from setr.data.data_yaml import SPLITS, DataLoader
from setr.errors import UsageError
from setr.labels import IGNORE
from setr.outlines.drawing import Ring, Shape, as_points
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex
from setr.reading.files import walk_images
from setr.reading.parsed import BROKEN, yaml_of

YOLO = "YOLO"
"""The format's name in messages."""
FARTHEST = 2.0
"""Largest relative coordinate that is accepted; some tools write points slightly outside."""


def yolo_folder(file: Path) -> Path:
    """The folder that a YAML file of Ultralytics describes.

    Raises:
        SetrError: the file cannot be read, names no folder, or has a split outside of it.
    """
    described = _read(file)
    if not described:
        raise UsageError(f"{file}: no YAML file with names of classes, as Ultralytics has it")
    root = described_folder(file, str(described.get("path", ".")))
    for place in (place for split in SPLITS for place in _places(described, split)):
        there = (root / place).resolve()
        if there.exists() and not there.is_relative_to(root.resolve()):
            raise UsageError(
                f"{file}: {place} is outside {root}; name the folder of all images and labels as "
                "path:"
            )
    return root


def yolo_outlines(
    root: Path, images: list[str], index: ImageIndex, file: Path | None = None
) -> AnnotatedFolder | None:
    """Text files in `labels` for images in `images`, or next to them; without one, no objects.

    Args:
        file: YAML file that describes the folder (`yolo_folder`); None for the first one in it.
    """
    out = AnnotatedFolder(YOLO, True)
    texts = set(walk_images(root, frozenset({".txt"})))
    described = {**_read(file), "path": "."} if file else _described(root)
    names, largest, understood = _classes(root, described), -1, False
    splits = _splits(root, images, index, described)
    for image in images:
        text = next((t for t in _text_names(image) if t in texts), "")
        shapes = []
        for number, words in enumerate(_words(root / text) if text else (), 1):
            values = _numbers(words)
            understood = understood or len(values) >= 5
            if len(values) == 5:
                out.leave_out("boxes")
            elif len(values) < 7 or len(values) % 2 == 0 or values[0] % 1 or values[0] < 0:
                out.problems.append(f"{text}: line {number} is not 'class x y x y x y …'")
            elif abs(farthest := max(values[1:], key=abs)) > FARTHEST:
                out.problems.append(
                    f"{text}: line {number}: {farthest:g} is out of range; give x and y as "
                    "fractions of width and height, 0 to 1"
                )
            else:
                number_of_class = int(values[0])
                largest = max(largest, number_of_class)
                name = names.get(number_of_class, f"class_{number_of_class}")
                shapes.append(Shape(name, (Ring(as_points(values[1:]), relative=True),)))
        out.images.append(
            AnnotatedImage(image, tuple(shapes), text or image, split=splits.get(image, ""))
        )
    if understood and "kpt_shape" in described:
        out.problems = ["the YAML file has kpt_shape: the labels are keypoints, which have no area"]
    count = max(largest, *names, -1) + 1
    if count > IGNORE:
        out.problems.append(f"class number {count - 1}: at most {IGNORE} classes, from 0 on")
        count = 0
    out.classes = tuple(names.get(i, f"class_{i}") for i in range(count))
    if not names:
        out.notes.append(
            "no file names the classes; if a YAML file of Ultralytics elsewhere does, give that in "
            "place of the folder"
        )
    return out if understood else None


def _text_names(image: str) -> list[str]:
    """Possible names of the text file of an image."""
    stem = os.path.splitext(image)[0]
    head, folder, tail = f"/{stem}".rpartition("/images/")
    return [f"{head}/labels/{tail}.txt"[1:], f"{stem}.txt"] if folder else [f"{stem}.txt"]


def _words(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split() for line in lines if line.strip()]


def _numbers(words: list[str]) -> list[float]:
    """The numbers of a line; empty if any word is not a finite number."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


def _described(root: Path) -> dict[str, Any]:
    """Content of the first YAML file in the folder with `names`; empty without one."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        if values := _read(path):
            return values
    return {}


def _read(file: Path) -> dict[str, Any]:
    """Content of a YAML file with `names`; empty of another one."""
    try:
        values = yaml_of(file.read_text(encoding="utf-8"), DataLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    named = isinstance(values, dict) and isinstance(values.get("names"), list | dict)
    return values if named else {}


def _places(described: dict[str, Any], split: str) -> list[str]:
    """The folders and lists of a split."""
    given = described.get(split) or []
    return [str(place) for place in (given if isinstance(given, list) else [given])]


def _splits(
    root: Path, images: list[str], index: ImageIndex, described: dict[str, Any]
) -> dict[str, str]:
    """The split of each image, from the folders or list files that a YAML file gives for splits."""
    base, found = root / str(described.get("path", ".")), dict[str, str]()
    for split in SPLITS:
        for place in _places(described, split):
            listed = next((p for p in (base / place, root / place) if p.exists()), root / place)
            if listed.is_dir():
                folder = os.path.relpath(listed, root)
                within = [i for i in images if Path(i).is_relative_to(folder) or folder == "."]
            elif listed.suffix == ".txt" and listed.is_file():
                lines = (os.path.normpath(" ".join(words)) for words in _words(listed))
                named = (index.find(line, place) for line in lines)
                within = [only[0] for only in named if len(only) == 1]
            else:
                continue
            for image in within:
                found.setdefault(image, split)
    return found


def _classes(root: Path, described: dict[str, Any]) -> dict[int, str]:
    """Class names by id: `names` of the YAML file, or a classes file."""
    names = described.get("names")
    try:
        if names is None:
            return names_by_id(root)
        pairs = enumerate(names) if isinstance(names, list) else names.items()
        return {int(i): str(name) for i, name in pairs}
    except BROKEN:
        return {}
