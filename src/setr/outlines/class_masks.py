"""Binary masks, one for each class of an image, which are merged like outlines.

The class is a folder (`masks/car/x.png`), a file in a folder per image (`masks/x/car.png`), or a
suffix of the name (`masks/x_car.png`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np

from setr.data.class_files import names_by_id
from setr.data.layouts import SPLIT_OF
from setr.data.mask_names import MASK_SUFFIXES
from setr.errors import SetrError
from setr.labels import IGNORE
from setr.outlines.drawing import MaskFile, Shape
from setr.outlines.index import BACKGROUND, IGNORED, AnnotatedFolder, AnnotatedImage
from setr.reading.files import stem_of, walk_images
from setr.reading.masks import read_mask

_USUAL_SUFFIXES = {end[1:] for end in MASK_SUFFIXES}
"""Usual suffixes of masks with all classes, next to which there may be other images."""


def class_masks(root: Path, folders: Iterable[tuple[str, str]]) -> AnnotatedFolder | None:
    """The binary masks below a folder, or None if its masks are of another kind.

    None also if masks have the names of the images: they are taken to contain all classes.

    Args:
        root: the folder.
        folders: pairs of image folder and mask folder, relative to it.
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
            for stem, class_name, mask in _named(stems, masks):
                found.setdefault(stems[stem], []).append((class_name, f"{mask_folder}/{mask}"))
    named = {class_name for parts in found.values() for class_name, _ in parts}
    paths = [root / mask for parts in found.values() for _, mask in parts]
    if not 0 < len(named) < IGNORE or any(map(str.isdecimal, named)) or not _are_binary(paths):
        return None
    out = AnnotatedFolder("masks of one class each", True)
    listed = [n for n in dict.fromkeys(names_by_id(root).values()) if n in named]
    out.classes = (*listed, *sorted(named - {IGNORED, BACKGROUND, *listed}))
    for image, parts in found.items():
        shapes = (Shape(class_name, (MaskFile(root / mask),)) for class_name, mask in parts)
        out.images.append(AnnotatedImage(image, tuple(shapes), parts[0][1]))
    out.unannotated = [image for image in images if image not in found]
    return out


def _named(stems: Container[str], masks: list[str]) -> list[tuple[str, str, str]]:
    """Image stem, class and name of each mask; empty if any name does not fit."""
    plain = [stem_of(name) for name in masks]
    for parse in (_by_folder, _by_suffix):
        parsed = [parse(name, stems) for name in plain]
        class_names = {class_name for _, class_name in parsed}
        usual = parse is _by_suffix and (
            len(class_names) == 1 or not class_names.isdisjoint(_USUAL_SUFFIXES)
        )
        if "" not in class_names and not usual:
            return [(*pair, mask) for pair, mask in zip(parsed, masks, strict=True)]
    return []


def _by_folder(name: str, stems: Container[str]) -> tuple[str, str]:
    """`car/x` or `x/car`: the class is the part of the path to remove to get an image's path."""
    parts = name.split("/")
    for place, part in enumerate(parts):
        stem = "/".join(parts[:place] + parts[place + 1 :])
        if stem in stems and part.lower() not in SPLIT_OF:
            return stem, part
    return "", ""


def _by_suffix(name: str, stems: Container[str]) -> tuple[str, str]:
    """`x_car`: the class follows the longest matching image name."""
    for end in range(len(name) - 1, 0, -1):
        if name[end] in "_-. " and name[:end] in stems:
            return name[:end], name[end + 1 :]
    return "", ""


def _are_binary(masks: list[Path]) -> bool:
    """Whether each mask has at most one value besides 0, and at least one mask has any."""
    any_object = False
    try:
        for mask in masks:
            values = np.unique(read_mask(mask))
            if len(values) > 2 or (len(values) == 2 and values[0]):
                return False
            any_object = any_object or bool(values[-1])
    except SetrError:
        return False
    return any_object
