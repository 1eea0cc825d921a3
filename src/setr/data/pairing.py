"""Which mask belongs to which image: folders by stem, lists of stems, and what does not fit.

Masks that lack an image are noted, images that lack a mask refused; nothing is dropped silently.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.reading.files import IMAGE_SUFFIXES, composed, stem_of, walk_images

MASK_FOLDERS = ("labels", "masks", "annotations")
_SEGMENTS_AI = "_label_ground-truth"
"""In the names of all labels of Segments.ai: numbered objects, classes and colours."""
MASK_SUFFIXES = (
    *("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L"),
    f"{_SEGMENTS_AI}_semantic",
)
"""Ends of the stems of masks that lie in one folder with their images."""

_SOME = 20  # masks among which an end is looked for


class NoSplitError(SetrError):
    """The data set has no split of that name."""


class Found(NamedTuple):
    """The files of a split.

    Attributes:
        root: folder the names are relative to.
        images: image files.
        masks: the mask of each image; None where the split has none (a test set).
        labels: known data set, with the encoding of its ids, that the layout implies.
        notes: what is odd but no error.
        folder: below `root`, that holds the images; empty where a list names them.
    """

    root: Path
    images: Sequence[str]
    masks: Sequence[str] | None
    labels: str | None = None
    notes: tuple[str, ...] = ()
    folder: str = ""


def open_list(path: Path) -> TextIO:
    """A list file, open as text: UTF-8, or UTF-16 as Windows' PowerShell writes it."""
    try:
        with path.open("rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if wide else "utf-8-sig"
        return path.open(encoding=encoding, errors="surrogateescape", newline=None)
    except OSError as error:
        raise data_error(f"{path}: cannot read ({error.strerror})") from None


def listed_names(listed: Path, is_name: Callable[[str], object] = lambda _: False) -> list[str]:
    """First words of a list file; blank lines and line ends of any kind do not matter.

    A line of several words is one name where `is_name` says so, unless it begins with a file's.
    """
    with open_list(listed) as file:
        lines = [line.strip() for line in file if line.strip()]
    names = []
    for line in lines:
        first, *more = line.split()
        names.append(line if more and not is_file(first) and is_name(line) else first)
    if not names:
        raise data_error(f"{listed}: lists no images; write their names, one a line")
    refuse_doubles(listed, names, "listed more than once")
    return names


def pair_folders(root: Path, images: str, masks: str, labels: str | None) -> Found:
    """Pair two folders by path and stem, or the files of one folder.

    Masks may be called after their images with an end that all share: `x_mask.png` for `x.jpg`. In
    one folder it tells masks from images and has to be one of `MASK_SUFFIXES`.
    """
    files = names_below(root / images)
    if images == masks:
        files, found = apart(files)
    else:
        found = names_below(root / masks, suffixes=IMAGE_SUFFIXES | {".mat"})
    stems = [stem_of(name) for name in files]
    refuse_doubles(root / images, stems, "the stem of several images; masks would be mixed up")
    masks_of = masks_by_stem(files, found)
    missing = [name for name, stem in zip(files, stems, strict=True) if stem not in masks_of]
    _refuse(root / masks, missing, len(files))
    pairs = [f"{masks}/{masks_of.pop(stem)}" for stem in stems]
    notes: tuple[str, ...] = ()
    if masks_of:
        shown = ", ".join(sorted(masks_of.values())[:5])
        notes = (f"{root / masks}: {len(masks_of)} masks have no image: {shown}",)
    return Found(root, [f"{images}/{name}" for name in files], pairs, labels, notes, images)


def apart(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images and masks of one folder; no masks where no name tells one."""
    stems = {stem_of(name) for name in names}
    for end in MASK_SUFFIXES:
        masks = {stem + end for stem in stems} & stems
        if masks:
            is_mask = [stem_of(name) in masks for name in names]
            return (
                [
                    name
                    for name, mask in zip(names, is_mask, strict=True)
                    if not mask and _SEGMENTS_AI not in name
                ],
                [name for name, mask in zip(names, is_mask, strict=True) if mask],
            )
    return list(names), []


def masks_by_stem(images: Sequence[str], masks: Iterable[str]) -> dict[str, str]:
    """Mask files by the stem of their image, without the end that masks have and images lack.

    The end may be the image's own suffix: `x.jpg.png` for `x.jpg`.
    Of several ends that fit equally many images, the one of `MASK_SUFFIXES` is taken.

    Raises:
        SetrError: several masks for every image, and no name tells which is meant (exit code 3).
    """
    stems = [stem_of(name) for name in images]
    by_stem: dict[str, str] = {}
    for name in masks:
        if (first := by_stem.setdefault(stem_of(name), name)) != name:
            raise data_error(f"{first} and {name} are masks of one name; leave one of them")
    if any(stem in by_stem for stem in stems):
        return by_stem
    whole = {n: s for n, s in zip(map(composed, images), stems, strict=True) if n in by_stem}
    if whole:
        return {whole.get(mask, mask): name for mask, name in by_stem.items()}
    known, some = set(stems), islice(by_stem, _SOME)
    ends = {mask[i:] for mask in some for i in range(1, len(mask)) if mask[:i] in known}
    fitting = {end: sum(stem + end in by_stem for stem in stems) for end in sorted(ends)}
    begun = {  # before the end: `10_seg` is of image 10, and of no image 1
        e
        for e, n in fitting.items()
        if any(len(s) < len(e) and e.endswith(s) and m >= n for s, m in fitting.items())
    }
    most = max((n for e, n in fitting.items() if e not in begun), default=0)
    equal = [e for e, n in fitting.items() if n == most and e not in begun]
    usual = [e for e in equal if e in MASK_SUFFIXES]
    if len(equal) > 1 and len(usual) != 1:
        stem = next(stem for stem in stems if stem + equal[0] in by_stem)
        shown = " and ".join(by_stem[stem + end] for end in equal if stem + end in by_stem)
        raise data_error(
            f"images have several masks, as {stem} has {shown}; leave one for each image, with one "
            "class id per pixel; if each is of one class, `setr init-data DIR` joins files of 0 "
            "and one other value; paint others over each other into one file"
        )
    end = (usual or equal or [""])[0]
    return {m.removesuffix(end): name for m, name in by_stem.items() if m.endswith(end)}


def pair_names(
    root: Path, names: list[str], masks: str, labels: str | None, suffix: str = ".png"
) -> Found:
    """Pair `JPEGImages/NAME.jpg` with `MASKS/NAME.png`, or those of the name with other endings."""
    paired = []
    for folder, usual in (("JPEGImages", ".jpg"), (masks, suffix)):
        files = names_below(root / folder, suffixes=IMAGE_SUFFIXES | {".mat"})
        by_stem = {stem_of(file): file for file in sorted(files, key=lambda f: f.endswith(usual))}
        missing = [f"{name}{usual}" for name in names if composed(name) not in by_stem]
        _refuse(root / folder, missing, len(names), "file")
        paired.append([f"{folder}/{by_stem[composed(name)]}" for name in names])
    images, paired_masks = paired
    return Found(root, images, paired_masks, labels)


def only_listed(found: Found, listed: Path) -> Found:
    """Keep what a list file names, with any suffix.

    An entry is a path below the image folder; folders may be left out at its beginning, as in a
    bare stem, or stand before it, as on the machine where the list was made. What both name must
    agree.

    Raises:
        SetrError: entries that fit no image, or several.
    """
    assert found.masks is not None
    images = _Stems(name.removeprefix(f"{found.folder}/") for name in found.images)
    keep, unknown = [], []
    for name in listed_names(listed, images.fitting):
        fitting = images.fitting(name)
        if len(fitting) > 1:
            shown = " and ".join(found.images[i] for i in fitting[:2])
            raise data_error(
                f"{listed}: '{name}' fits {len(fitting)} images ({shown}); name the folder, too"
            )
        if fitting:
            keep.append(fitting[0])
        else:
            unknown.append(name)
    if unknown:
        raise data_error(
            f"{listed}: {len(unknown)} entries have no image: {', '.join(unknown[:10])}"
        )
    kept = [found.images[i] for i in keep]
    refuse_doubles(listed, kept, "listed more than once")
    return found._replace(images=kept, masks=[found.masks[i] for i in keep])


class _Stems:
    """Image paths without suffix, found by their end."""

    def __init__(self, names: Iterable[str]) -> None:
        self._whole: dict[str, int] = {}
        self._ends: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            stem = stem_of(name)
            self._whole[stem] = i
            for end in _ends(stem):
                self._ends.setdefault(end, []).append(i)

    def fitting(self, entry: str) -> list[int]:
        """Numbers of the images an entry may mean.

        The image of that path, else those whose path ends so, else the one whose path is the
        longest end of the entry.
        """
        stem = stem_of(entry) if is_file(entry) else composed(entry)  # stems may hold dots
        if stem not in self._whole and stem in self._ends:
            return self._ends[stem]
        return [self._whole[end] for end in _ends(stem) if end in self._whole][:1]


def is_file(entry: str) -> bool:
    """Whether a name in a list has the ending of an image."""
    return os.path.splitext(entry)[1].lower() in IMAGE_SUFFIXES


def _ends(path: str) -> list[str]:
    """a/b/c -> a/b/c, b/c, c."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def names_below(
    folder: Path, prefix: str = "", suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> list[str]:
    """Names, with a prefix, of the images below a folder that must exist and hold some."""
    if not folder.is_dir():
        raise data_error(f"{folder}: no such folder")
    names = walk_images(folder, suffixes)
    if not names:
        outlines = walk_images(folder, frozenset({".json", ".txt"}))
        hint = (
            f"; if {outlines[0]} holds outlines, `setr init-data DIR` draws masks"
            if outlines
            else ""
        )
        raise data_error(f"{folder}: no images in this folder{hint}")
    return [prefix + name for name in names]


def below(root: Path, *names: str) -> Path:
    """The first of these folders below `root` that exists, else `root`."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def refuse_missing(place: Path, images: list[str], masks: list[str], present: set[str]) -> None:
    """Raise an error that counts and names the images whose mask is not present."""
    missing = [i for i, m in zip(images, masks, strict=True) if m not in present]
    _refuse(place, missing, len(images))


def _refuse(place: Path, missing: list[str], total: int, kind: str = "mask") -> None:
    if missing:
        shown = ", ".join(os.path.basename(name) for name in missing[:10])
        more = ", …" if len(missing) > 10 else ""
        raise data_error(f"{place}: no {kind} for {len(missing)} of {total} images: {shown}{more}")


def refuse_doubles(place: Path, names: list[str], what: str) -> None:
    """Raise an error that names the first of the names that are there twice."""
    if len(set(names)) < len(names):
        doubles = sorted(name for name, count in Counter(names).items() if count > 1)
        raise data_error(f"{place}: '{doubles[0]}' is {what} ({len(doubles)} such names)")


def data_error(message: str) -> SetrError:
    """An error of the data set: exit code 3."""
    return SetrError(message, code=DATA_CHECK_FAILED)
