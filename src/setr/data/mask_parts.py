"""Finds masks of one class or of one object each by the names of files: several for an image.

The class is a folder (`masks/car/x.png`), a file in a folder per image (`masks/x/car.png`), or a
suffix of the name (`masks/x_car.png`), which may be beside its image. Objects of a class are
numbered (`x_car_0.png`), or have names of their own in a folder per image.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from setr.data.layouts import SPLIT_OF
from setr.data.mask_names import MASK_SUFFIXES
from setr.data.pairing import unique_stems
from setr.reading.files import printable, stem_of

_USUAL_SUFFIXES = {end[1:] for end in MASK_SUFFIXES}
"""Usual suffixes of masks with all classes, next to which there may be other images."""
_NUMBERED = re.compile(r"(.+)[_\-. ]\d+")


class MaskParts(NamedTuple):
    """Masks of one class or object each.

    Attributes:
        of: classes and mask files of each image; the class is empty if only objects have names.
        without: images without any.
        note: message on names that were understood as numbers of objects; empty without any.
        problem: why the names do not tell the classes, if these are such masks; empty if they do.
    """

    of: dict[str, list[tuple[str, str]]]
    without: list[str]
    note: str = ""
    problem: str = ""


class Folders(NamedTuple):
    """A folder of images and one of masks, with the files below them."""

    images: str
    masks: str
    image_files: list[str]
    mask_files: list[str]


def parts_in_folders(folders: Sequence[Folders]) -> MaskParts | None:
    """Masks of one class each in folders beside those of the images; None if they are others.

    Raises:
        SetrError: images with the same stem (exit code 3).
    """
    found: dict[str, list[tuple[str, str]]] = {}
    images: dict[str, None] = {}
    alone = _are_folders_of_one_image(folders)
    for folder in folders:
        stems = {stem_of(name): name for name in folder.image_files}
        paths = {stem: f"{folder.images}/{name}" for stem, name in stems.items()}
        images |= dict.fromkeys(paths.values())
        if any(stem_of(name) in stems for name in folder.mask_files):
            return None
        named = _named(stems, folder.mask_files)
        if alone:
            (only,) = stems
            named = [(only, stem_of(name), name) for name in folder.mask_files]
        _require_unique(folder.images, folder.image_files, named)
        for stem, class_name, mask in named:
            found.setdefault(paths[stem], []).append((class_name, f"{folder.masks}/{mask}"))
    return _classes(found, list(images))


def _are_folders_of_one_image(folders: Sequence[Folders]) -> bool:
    """Whether each of several folders has one image, whose name no mask has, and most several."""
    if len(folders) < 2 or any(len(folder.image_files) != 1 for folder in folders):
        return False
    if sum(len(folder.mask_files) for folder in folders) < 2 * len(folders):
        return False
    return not any(
        "/" in mask or _by_suffix(stem_of(mask), {stem_of(image)})[0]
        for folder in folders
        for image in folder.image_files
        for mask in folder.mask_files
    )


def parts_beside(files: Sequence[str]) -> MaskParts | None:
    """Masks of one class each beside their images, as `x_car.png`; None if there are none.

    Raises:
        SetrError: as `parts_in_folders`.
    """
    stems = {stem_of(name) for name in files}
    images = {stem: stem for stem in stems if not _by_suffix(stem, stems)[0]}
    masks = [name for name in files if stem_of(name) not in images]
    names = {stem_of(name): name for name in files}
    found: dict[str, list[tuple[str, str]]] = {}
    named = _named(images, masks, folders=False)
    _require_unique("", files, named)
    for stem, class_name, mask in named:
        found.setdefault(names[stem], []).append((class_name, mask))
    if len(found) + len(masks) < len(set(names)) / 2:
        return None  # a few names among others that are alike by chance
    return _classes(found, [names[stem] for stem in sorted(images)])


def _require_unique(
    folder: str, files: Sequence[str], named: Sequence[tuple[str, str, str]]
) -> None:
    """Refuse two images with the stem of the same masks."""
    with_masks = {stem for stem, *_ in named}
    unique_stems(folder, [name for name in files if stem_of(name) in with_masks])


def _named(
    stems: Collection[str], masks: Sequence[str], *, folders: bool = True
) -> list[tuple[str, str, str]]:
    """Image stem, class and name of each mask; empty if any name does not fit."""
    plain = [stem_of(name) for name in masks]
    for parse in (_by_folder, _by_suffix) if folders else (_by_suffix,):
        parsed = [parse(name, stems) for name in plain]
        class_names = {class_name for _, class_name in parsed}
        usual = parse is _by_suffix and (
            len(class_names) == 1 or not class_names.isdisjoint(_USUAL_SUFFIXES)
        )
        if "" not in class_names and not usual:
            return [(*pair, mask) for pair, mask in zip(parsed, masks, strict=True)]
    return []


def _by_folder(name: str, stems: Collection[str]) -> tuple[str, str]:
    """`car/x` or `x/car`: the class is the part of the path to remove to get an image's path."""
    parts = name.split("/")
    for place, part in enumerate(parts):
        stem = "/".join(parts[:place] + parts[place + 1 :])
        if stem in stems and part.lower() not in SPLIT_OF:
            return stem, part
    return "", ""


def _by_suffix(name: str, stems: Collection[str]) -> tuple[str, str]:
    """`x_car`: the class follows the longest matching image name."""
    for end in range(len(name) - 1, name.rfind("/") + 1, -1):
        if name[end] in "_-. " and name[:end] in stems:
            return name[:end], name[end + 1 :]
    return "", ""


def _classes(found: Mapping[str, list[tuple[str, str]]], images: list[str]) -> MaskParts | None:
    """The parts with the names of classes only, without those and the numbers of objects."""
    names = [class_name for parts in found.values() for class_name, _ in parts]
    without = [image for image in images if image not in found]
    if not names:
        return None
    if any(map(str.isdecimal, names)):
        masks = [mask for parts in found.values() for _, mask in parts]
        problem = (
            f"{printable(masks[0])} and {len(masks) - 1} other masks are numbered; if the numbers "
            "are classes, give --images and --masks with {class} in the place of the number, if "
            "they are objects of one class, with {any}"
        )
        return MaskParts(dict(found), without, problem=problem)
    if _are_of_objects(names, len(found)):
        note = f"{len(names)} masks of one object each; all objects are of one class"
        objects = {image: [("", mask) for _, mask in parts] for image, parts in found.items()}
        return MaskParts(objects, without, note)
    bare = {name: match[1] for name in set(names) if (match := _NUMBERED.fullmatch(name))}
    if len(bare) == len(set(names)) and len(set(bare.values())) > 1:
        example = min(bare)
        note = f"numbers at the end are those of objects: {example} is of class {bare[example]}"
        objects = {image: [(bare[n], mask) for n, mask in parts] for image, parts in found.items()}
        return MaskParts(objects, without, note)
    return MaskParts(dict(found), without)


def _are_of_objects(names: Sequence[str], images: int) -> bool:
    """Whether names are not of classes: several an image, none twice, and most with digits."""
    with_digits = sum(any(letter.isdigit() for letter in name) for name in names)
    return len(set(names)) == len(names) > images > 1 and with_digits > len(names) / 2
