"""Masks of one class each, several for an image, that are joined as outlines are drawn.

A class has a folder (`masks/car/x.png`), a file in the folder of each image (`masks/x/car.png`), or
an end of the names (`masks/x_car.png`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np

from setr.data.class_files import names_by_id
from setr.data.layouts import SPLIT_OF
from setr.data.pairing import MASK_SUFFIXES
from setr.errors import SetrError
from setr.labels import IGNORE
from setr.outlines.drawing import MaskFile, Shape
from setr.outlines.index import BACKGROUND, IGNORED, Annotated, Outlined
from setr.reading.files import stem_of, walk_images
from setr.reading.masks import read_mask

_USUAL = {end[1:] for end in MASK_SUFFIXES}
"""Ends of masks of all classes, beside which there may be other pictures."""


def class_masks(root: Path, folders: Iterable[tuple[str, str]]) -> Outlined | None:
    """What to join below a folder, or None where masks are not of one class each.

    A folder of masks with the images' own names holds all classes, and goes before others.

    Args:
        root: the folder.
        folders: of images and of their masks, relative to it.
    """
    found: dict[str, list[tuple[str, str]]] = {}  # classes and masks of each image
    images: dict[str, None] = {}
    for image_folder, mask_folder in folders:
        if (root / image_folder).is_dir() and (root / mask_folder).is_dir():
            files = walk_images(root / image_folder)
            stems = {stem_of(name): f"{image_folder}/{name}" for name in files}
            images |= dict.fromkeys(stems.values())
            masks = walk_images(root / mask_folder)
            if any(stem_of(name) in stems for name in masks):
                return None
            for stem, title, mask in _named(stems, masks):
                found.setdefault(stems[stem], []).append((title, f"{mask_folder}/{mask}"))
    named = {title for parts in found.values() for title, _ in parts}
    paths = [root / mask for parts in found.values() for _, mask in parts]
    if not 0 < len(named) < IGNORE or any(map(str.isdecimal, named)) or not _are_binary(paths):
        return None
    out = Outlined("masks of one class each", True)
    listed = [n for n in dict.fromkeys(names_by_id(root).values()) if n in named]
    out.classes = (*listed, *sorted(named - {IGNORED, BACKGROUND, *listed}))
    for image, parts in found.items():
        shapes = (Shape(title, (MaskFile(root / mask),)) for title, mask in parts)
        out.images.append(Annotated(image, tuple(shapes), parts[0][1]))
    out.alone = [image for image in images if image not in found]
    return out


def _named(stems: Container[str], masks: list[str]) -> list[tuple[str, str, str]]:
    """Stem of the image, class and name of each mask; nothing where one has another name."""
    plain = [stem_of(name) for name in masks]
    for way in (_by_folder, _by_end):
        told = [way(name, stems) for name in plain]
        titles = {title for _, title in told}
        usual = way is _by_end and (len(titles) == 1 or not titles.isdisjoint(_USUAL))
        if "" not in titles and not usual:
            return [(*pair, mask) for pair, mask in zip(told, masks, strict=True)]
    return []


def _by_folder(name: str, stems: Container[str]) -> tuple[str, str]:
    """`car/x` or `x/car`: the class is a part of the path without which it is that of an image."""
    parts = name.split("/")
    for place, part in enumerate(parts):
        stem = "/".join(parts[:place] + parts[place + 1 :])
        if stem in stems and part.lower() not in SPLIT_OF:
            return stem, part
    return "", ""


def _by_end(name: str, stems: Container[str]) -> tuple[str, str]:
    """`x_car`: the class stands behind the longest name of an image."""
    for end in range(len(name) - 1, 0, -1):
        if name[end] in "_-. " and name[:end] in stems:
            return name[:end], name[end + 1 :]
    return "", ""


def _are_binary(masks: list[Path]) -> bool:
    """Whether masks hold 0 and one other value each, and some of them an object."""
    some = False
    try:
        for mask in masks:
            values = np.unique(read_mask(mask))
            if len(values) > 2 or (len(values) == 2 and values[0]):
                return False
            some = some or bool(values[-1])
    except SetrError:
        return False
    return some
