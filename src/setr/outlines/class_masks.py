"""Masks of one class or of one object each, which are joined like outlines."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from setr.data.class_files import names_by_id
from setr.data.flat_pairs import (
    files_below,
    inventory,
    relative_places,
    require_found,
    unused_files,
    usual_folders,
)
from setr.data.layouts import listed_splits
from setr.data.mask_parts import Folders, MaskParts, parts_beside, parts_in_folders
from setr.data.name_patterns import has_parts, parts_by_pattern
from setr.errors import DataError, SetrError
from setr.labels import IGNORE
from setr.outlines.drawing import Shape
from setr.outlines.index import BACKGROUND, AnnotatedFolder, AnnotatedImage
from setr.outlines.mask_files import MaskFile
from setr.reading.files import unread_text, walk_images

OBJECT = "object"
"""Class of masks of one object each, unless a file of class names gives it another."""
_SAMPLED = 50
"""Images whose masks are read to tell whether the masks of a folder are of one class each."""
_SAME = 0.5
"""Intersection over union of two classes, from which on their masks may be of two annotators."""
_INSIDE = 0.02
"""Share of the smaller one outside the larger up to which it is a part of it."""


def class_masks(root: Path, threshold: int = 0) -> AnnotatedFolder | None:
    """The masks of one class each below a folder, or None if its masks are of another kind.

    None also if masks have the names of the images: they are taken to contain all classes.

    Args:
        threshold: grey level from which on pixels belong to the class; 0 if all masks have 0 and
            one other value.

    Raises:
        SetrError: names that do not tell the classes, or masks of two annotators (exit code 3).
    """
    pairs = [pair for group in usual_folders(root) for pair in group]
    pairs = [pair for pair in pairs if all((root / folder).is_dir() for folder in pair)]
    return _in_folders(root, pairs, threshold)


def _in_folders(
    root: Path, pairs: Sequence[tuple[str, str]], threshold: int
) -> AnnotatedFolder | None:
    """As `class_masks`, in folders of images and masks, or without these anywhere."""
    folders = [Folders(*pair, *(walk_images(root / folder) for folder in pair)) for pair in pairs]
    parts = parts_in_folders(folders) if folders else parts_beside(files_below(root))
    if parts is None or (parts.problem and not folders):
        return None
    names = {class_name for found in parts.of.values() for class_name, _ in found}
    if len(names) >= IGNORE and not parts.problem:
        return None
    if not _are_binary(root, parts, threshold):
        return None
    if parts.problem:
        raise DataError(f"{root}: {parts.problem}")
    return _joined(root, parts, threshold)


def chosen_class_masks(
    root: Path, images: str, masks: str, threshold: int = 0
) -> AnnotatedFolder | None:
    """The masks of one class or object each that the user names by two patterns.

    Args:
        images: pattern of the images (see `parts_by_pattern`), or their folder.
        masks: pattern of their masks, or their folder, in which they are found as by `class_masks`.
        threshold: see `class_masks`.

    Returns:
        None if no image has several masks and the pattern has no `{class}`.

    Raises:
        SetrError: as `class_masks` and `parts_by_pattern`, or no masks (exit code 2).
    """
    places = relative_places(root, images, masks)
    if all(place and (root / place).is_dir() for place in places):
        return _in_folders(root, [(places[0], places[1])], threshold)
    if not has_parts(masks):
        return None
    of, without = parts_by_pattern(files_below(root), *places)
    require_found(root, images, masks, of, without)
    if "{class}" not in masks and all(len(parts) == 1 for parts in of.values()):
        return None
    return _joined(root, MaskParts(of, without), threshold)


def _joined(root: Path, parts: MaskParts, threshold: int) -> AnnotatedFolder:
    out = AnnotatedFolder("masks of one class each", True, tells_overlaps=True)
    first = list(dict.fromkeys(names_by_id(root).values()))
    others = [name for name in first if name not in (BACKGROUND, "background")]
    object_name = others[0] if len(others) == 1 else OBJECT
    named = {name or object_name for found in parts.of.values() for name, _ in found}
    splits = listed_splits(root, parts.of)
    for image, found in parts.of.items():
        shapes = (
            Shape(name or object_name, (MaskFile(root / mask, threshold, exact=not threshold),))
            for name, mask in found
        )
        out.images.append(AnnotatedImage(image, tuple(shapes), "", split=splits.get(image, "")))
    out.order_classes(name for name in first if name in named)
    out.unannotated = parts.without
    used = [(image, mask) for image, found in parts.of.items() for _, mask in found]
    unused = inventory(unused_files(root, [*used, *((image, "") for image in parts.without)]))
    out.notes += filter(None, (parts.note, unused and f"not used: {unused}", unread_text(root)))
    return out


def _are_binary(root: Path, parts: MaskParts, threshold: int) -> bool:
    """Whether masks are of one class each, as far as a sample of them tells, and one has any.

    Raises:
        SetrError: masks of two annotators (exit code 3).
    """
    images = list(parts.of.values())
    step = max(1, len(images) // _SAMPLED)
    areas: Counter[str] = Counter()
    common: Counter[tuple[str, str]] = Counter()
    try:
        for found in images[::step]:
            covers = _covers(root, found, threshold)
            areas.update({name: int(np.count_nonzero(c)) for name, c in covers.items()})
            for a, b in itertools.combinations(sorted(covers), 2):
                if covers[a].shape == covers[b].shape:
                    common[a, b] += int(np.count_nonzero(covers[a] & covers[b]))
        if not any(areas.values()):  # as of defects, which few images have
            rest = (cover for found in images for cover in _covers(root, found, threshold).values())
            return any(cover.any() for cover in rest)
    except SetrError:
        return False
    for (a, b), both in common.items():
        outside = min(areas[a], areas[b]) - both
        if both > _SAME * (areas[a] + areas[b] - both) and outside > _INSIDE * both:
            raise DataError(
                f"{root}: masks of '{a}' and of '{b}' mostly cover the same pixels, as those of "
                "two annotators do; choose with --images and --masks (as 'masks/*_A'), or join "
                "both as classes with {class} in --masks"
            )
    return True


def _covers(root: Path, found: Sequence[tuple[str, str]], threshold: int) -> dict[str, np.ndarray]:
    """The pixels of each class in an image, (H, W) bool."""
    covers: dict[str, np.ndarray] = {}
    for name, mask in found:
        inside = MaskFile(root / mask, threshold, exact=not threshold).pixels()
        same = name in covers and covers[name].shape == inside.shape
        covers[name] = covers[name] | inside if same else inside
    return covers
