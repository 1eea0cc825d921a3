"""Pairing of images with masks, by path and stem, in folders and in list files.

A mask without an image gives a warning, an image without a mask an error.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from setr.data.mask_names import masks_by_stem, separate_masks
from setr.errors import DataError, SetrError, first_few
from setr.reading.files import (
    IMAGE_SUFFIXES,
    composed,
    printable,
    stem_of,
    unread_text,
    walk_images,
)

MASK_FOLDERS = ("labels", "masks", "annotations")


class NoSplitError(SetrError):
    """The data set has no split with that name."""


class SplitFiles(NamedTuple):
    """The files of a split.

    Attributes:
        root: folder that the names are relative to.
        images: image files.
        masks: mask file of each image; None for a test set without masks.
        labels: name of the known data set and encoding of ids that the layout implies, if any.
        notes: warnings about the files.
        folder: image folder below `root`; empty if the images come from a list.
    """

    root: Path
    images: Sequence[str]
    masks: Sequence[str] | None
    labels: str | None = None
    notes: tuple[str, ...] = ()
    folder: str = ""


def open_list(path: Path) -> TextIO:
    """Open a list file as UTF-8, or as UTF-16, which Windows PowerShell writes."""
    try:
        with path.open("rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
        return path.open(encoding=encoding, errors=errors, newline=None)
    except OSError as error:
        raise DataError(f"{path}: cannot read ({error.strerror})") from None


def listed_names(listed: Path, is_name: Callable[[str], object] = lambda _: False) -> list[str]:
    """The first word of each line of a list file; blank lines are skipped.

    A line of several words is one name if `is_name` accepts it, unless it starts with a file name.
    """
    with open_list(listed) as file:
        lines = [line.strip() for line in file if line.strip()]
    names = []
    for line in lines:
        first, *more = line.split()
        names.append(line if more and not is_file(first) and is_name(line) else first)
    if not names:
        raise DataError(f"{listed}: lists no images; write their names, one a line")
    refuse_doubles(listed, names)
    return names


def pair_folders(root: Path, images: str, masks: str, labels: str | None) -> SplitFiles:
    """Pair the files of two folders, or of one, by path and stem.

    Mask stems may have a common suffix: `x_mask.png` for `x.jpg`. If images and masks are in one
    folder, the suffix has to be one of `MASK_SUFFIXES`.
    """
    files = names_below(root / images)
    if images == masks:
        files, mask_files = separate_masks(files)
    else:
        mask_files = names_below(root / masks, suffixes=IMAGE_SUFFIXES | {".mat"})
    stems = list(unique_stems(images, files))
    masks_of = masks_by_stem(files, mask_files)
    missing = [name for name, stem in zip(files, stems, strict=True) if stem not in masks_of]
    _require_none_missing(root / masks, missing, len(files))
    pairs = [f"{masks}/{masks_of.pop(stem)}" for stem in stems]
    notes: tuple[str, ...] = ()
    if masks_of:
        shown = first_few(sorted(masks_of.values()), 5)
        notes = (f"{root / masks}: {len(masks_of)} masks have no image: {shown}",)
    return SplitFiles(root, [f"{images}/{name}" for name in files], pairs, labels, notes, images)


def unique_stems(folder: str, files: Iterable[str]) -> dict[str, str]:
    """The images of a folder by their stems, in their order.

    Raises:
        SetrError: two with the same stem (exit code 3).
    """
    stems: dict[str, str] = {}
    for name in files:
        first = stems.setdefault(stem_of(name), name)
        if first != name:
            ending = os.path.splitext(first)[1]
            raise DataError(
                f"{folder or '.'}: {printable(first)} and {printable(name)} are images with the "
                "same stem, so both would get the same mask; remove one of them, or take those of "
                f"one ending: `setr init-data DIR --images '{folder or '.'}/*{ending}' --masks "
                "'MASK_FOLDER/*'`"
            )
    return stems


def pair_names(
    root: Path, names: list[str], masks: str, labels: str | None, suffix: str = ".png"
) -> SplitFiles:
    """Pair `JPEGImages/NAME.jpg` with `MASKS/NAME.png`; other file endings are accepted, too."""
    paired = []
    for folder, usual in (("JPEGImages", ".jpg"), (masks, suffix)):
        files = names_below(root / folder, suffixes=IMAGE_SUFFIXES | {".mat"})
        by_stem = {stem_of(file): file for file in sorted(files, key=lambda f: f.endswith(usual))}
        missing = [f"{name}{usual}" for name in names if composed(name) not in by_stem]
        _require_none_missing(root / folder, missing, len(names), "file")
        paired.append([f"{folder}/{by_stem[composed(name)]}" for name in names])
    images, paired_masks = paired
    return SplitFiles(root, images, paired_masks, labels)


def select_listed(files: SplitFiles, listed: Path) -> SplitFiles:
    """Keep the images that a list file names, with or without file endings.

    An entry is a path below the image folder. It may lack leading folders, as a bare stem does, or
    have more of them, as an absolute path of another machine does.

    Raises:
        SetrError: entries that match no image, or several.
    """
    assert files.masks is not None
    images = _StemIndex(name.removeprefix(f"{files.folder}/") for name in files.images)
    keep, unknown = [], []
    for name in listed_names(listed, images.fitting):
        fitting = images.fitting(name)
        if len(fitting) > 1:
            shown = " and ".join(files.images[i] for i in fitting[:2])
            raise DataError(
                f"{listed}: '{name}' matches {len(fitting)} images ({shown}); add the folder"
            )
        if fitting:
            keep.append(fitting[0])
        else:
            unknown.append(name)
    if unknown:
        raise DataError(f"{listed}: {len(unknown)} entries have no image: {first_few(unknown, 10)}")
    kept = [files.images[i] for i in keep]
    refuse_doubles(listed, kept)
    return files._replace(images=kept, masks=[files.masks[i] for i in keep])


class _StemIndex:
    """Finds images by the last parts of their paths, without file endings."""

    def __init__(self, names: Iterable[str]) -> None:
        self._whole: dict[str, int] = {}
        self._ends: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            stem = stem_of(name)
            self._whole[stem] = i
            for end in _ends(stem):
                self._ends.setdefault(end, []).append(i)

    def fitting(self, entry: str) -> list[int]:
        """Numbers of the images that an entry of a list may mean.

        The image with that path; else all whose paths end with the entry; else the one with the
        longest path that the entry ends with.
        """
        stem = stem_of(entry) if is_file(entry) else composed(entry)  # a stem may contain dots
        if "\\" in stem and stem not in self._whole:  # written on Windows
            stem = stem.replace("\\", "/")
        if stem not in self._whole and stem in self._ends:
            return self._ends[stem]
        return [self._whole[end] for end in _ends(stem) if end in self._whole][:1]


def is_file(entry: str) -> bool:
    """Whether an entry of a list has the file ending of an image."""
    return os.path.splitext(entry)[1].lower() in IMAGE_SUFFIXES


def _ends(path: str) -> list[str]:
    """a/b/c -> a/b/c, b/c, c."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def names_below(
    folder: Path, prefix: str = "", suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> list[str]:
    """Names of the images below a folder, each with a prefix; an error if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = walk_images(folder, suffixes)
    if not names:
        outlines = walk_images(folder, frozenset({".json", ".txt"}))
        hint = (
            f"; if {outlines[0]} contains polygons, `setr init-data DIR` draws masks"
            if outlines
            else ""
        )
        unread = unread_text(folder)
        raise DataError(f"{folder}: no images in this folder{hint}{unread and f'; {unread}'}")
    return [prefix + name for name in names]


def first_folder(root: Path, *names: str) -> Path:
    """The first of these folders below `root` that exists, or `root` itself."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def refuse_missing(place: Path, images: list[str], masks: list[str], present: set[str]) -> None:
    """Raise an error that counts and names the images whose mask does not exist."""
    missing = [i for i, m in zip(images, masks, strict=True) if m not in present]
    _require_none_missing(place, missing, len(images))


def _require_none_missing(place: Path, missing: list[str], total: int, kind: str = "mask") -> None:
    if missing:
        shown = first_few([os.path.basename(name) for name in missing], 10)
        fix = (
            "; add them, or list the other pairs with `setr init-data DIR --images IMAGE_FOLDER "
            "--masks MASK_FOLDER`"
        )
        raise DataError(
            f"{place}: no {kind} for {len(missing)} of {total} images: {shown}"
            f"{fix if kind == 'mask' else ''}"
        )


def refuse_doubles(listed: Path, names: list[str]) -> None:
    """Raise an error if a list has a name twice."""
    if len(set(names)) < len(names):
        doubles = sorted(name for name, count in Counter(names).items() if count > 1)
        raise DataError(
            f"{listed}: '{doubles[0]}' is listed more than once ({len(doubles)} such names)"
        )
