"""Files of a split given in data.yaml: an image folder, or a list of pairs or of images."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from setr.data.pairing import (
    MASK_FOLDERS,
    SplitFiles,
    is_file,
    open_list,
    pair_folders,
    refuse_doubles,
)
from setr.errors import DataError, UsageError
from setr.reading.files import stem_of, walk_images


class FolderPair(NamedTuple):
    """The folders of a split's images and masks."""

    images: str
    masks: str


Place = str | FolderPair
"""Where the files of a split are: an image folder, a list file, or two folders."""


def described_folder(file: Path, place: str) -> Path:
    """The folder that `path:` of a YAML file names, relative to the file.

    Ultralytics' files name the folder of the data set, and may lie in it: then it is their own.

    Raises:
        SetrError: no such folder.
    """
    if (file.parent / place).is_dir():
        return file.parent / place
    if file.resolve().parent.name == Path(place).name:
        return file.parent
    raise UsageError(
        f"{file}: path: {place} leads to {(file.parent / place).resolve()}, and there is no such "
        "folder; give the folder of the images relative to this file, as path: . for its own"
    )


def configured_files(root: Path, named: Place, masks_dir: str | None = None) -> SplitFiles:
    """The pairs of an image folder, a list file or two folders, all relative to `root`.

    Masks of an image folder are in the same path with `images` replaced by `masks_dir`, or by one
    of `MASK_FOLDERS`.
    """
    if isinstance(named, FolderPair):
        images, masks = map(os.path.normpath, named)
        return pair_folders(root, images, masks, None)
    place = root / named
    if place.suffix.lower() in (".txt", ".csv"):
        return read_list(root, place, masks_dir)
    relative = place.relative_to(root) if place.is_relative_to(root) else place
    mask_folders = _mask_folders(masks_dir)
    there = [
        renamed
        for masks in mask_folders
        if (renamed := Path(*[masks if part == "images" else part for part in relative.parts]))
        != relative
        and (root / renamed).is_dir()
    ]
    if there:  # labels may be outlines, beside masks
        with_masks = [f for f in there if len(there) == 1 or walk_images(root / f)]
        return pair_folders(root, str(relative), str((with_masks or there)[0]), None)
    if not place.is_dir():
        raise DataError(f"{place}: no such folder or list file")
    raise DataError(
        f"{place}: found no mask folder; masks must be in the same path with 'images' replaced by "
        f"{' or '.join(mask_folders)}; for other places list both files in a .txt or .csv file"
    )


def read_list(root: Path, listed: Path, masks_dir: str | None = None) -> SplitFiles:
    """`image mask` per line (separated by tab or space), or a CSV with columns image and mask.

    In a list of images only, as Ultralytics has them, masks have the same path and stem, with the
    last `images` replaced by `masks_dir`, or by one of `MASK_FOLDERS`. Names are relative to
    `root`. Files are not checked here, so that lists of a million lines open in seconds, except to
    decide whether a line with spaces is one image or two files.
    """
    images, masks = [], []
    rows = _rows(root, listed)
    first = next(rows, ())
    rows = chain((first,) if first else (), rows)
    if len(first) == 1 and is_file(first[0]):
        return _pair_listed_images(root, listed, rows, masks_dir)
    for row in (tuple(_portable(root, name) for name in row) for row in rows):
        if len(row) != 2 or not all(row):
            raise DataError(
                f"{listed}: '{' '.join(row)}' is not 'image mask'; if names contain spaces, "
                "separate the two by a tab or use a .csv"
            )
        images.append(row[0])
        masks.append(row[1])
    if not images:
        raise DataError(f"{listed}: lists no images")
    refuse_doubles(listed, images)
    return SplitFiles(root, images, masks)


def _pair_listed_images(
    root: Path, listed: Path, rows: Iterable[Sequence[str]], masks_dir: str | None
) -> SplitFiles:
    """Find the masks of a list of images; `./` in names stands for the folder of the list."""
    images, masks, folders = [], [], dict[str, dict[str, str]]()
    for row in rows:
        if len(row) != 1:
            raise DataError(
                f"{listed}: '{' '.join(row)}' is not one image like the first line; give image "
                "and mask in every line, or only images"
            )
        name = _from_root(root, listed, _portable(root, row[0]))
        head, images_part, tail = f"/{name}".rpartition("/images/")
        places = [f"{head}/{m}/{tail}"[not os.path.isabs(name) :] for m in _mask_folders(masks_dir)]
        for folder, file in map(os.path.split, places if images_part else ()):
            if folder not in folders:
                entries = sorted(os.listdir(root / folder)) if (root / folder).is_dir() else []
                mask_files = (n for n in entries if is_file(n))
                folders[folder] = {stem_of(n): f"{folder}/{n}" for n in mask_files}
            mask = folders[folder].get(stem_of(file))
            if mask is not None:
                images.append(name)
                masks.append(mask)
                break
        else:
            looked = ", ".join(places) if images_part else "a folder 'images' in its path"
            raise DataError(
                f"{listed}: no mask for {name}; looked for {looked}; give both files in each line, "
                "or draw masks from polygons with `setr init-data`"
            )
    refuse_doubles(listed, images)
    return SplitFiles(root, images, masks)


def _portable(root: Path, name: str) -> str:
    """A listed name with slashes, if it was written on Windows."""
    return name.replace("\\", "/") if "\\" in name and not (root / name).exists() else name


def _from_root(root: Path, listed: Path, name: str) -> str:
    """Path of a listed image, relative to the root if it is below it."""
    name = str(listed.parent / name) if name.startswith("./") else name
    name = os.path.relpath(name, root) if Path(name).is_relative_to(root) else name
    return Path(name).as_posix()


def _mask_folders(masks_dir: str | None) -> tuple[str, ...]:
    return (masks_dir,) if masks_dir else MASK_FOLDERS


def _rows(root: Path, listed: Path) -> Iterator[Sequence[str]]:
    with open_list(listed) as file:
        if listed.suffix.lower() == ".csv":
            head = file.readline()
            file.seek(0)
            delimiter = ";" if ";" in head and "," not in head else ","  # spreadsheets write `;`
            table = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
            try:
                if not {"image", "mask"} <= set(table.fieldnames or ()):
                    raise DataError(
                        f"{listed}: the first line must name the columns image and mask"
                    )
                yield from ((row["image"] or "", row["mask"] or "") for row in table)
            except csv.Error as error:
                raise DataError(
                    f"{listed}: line {table.line_num + 1}: no table in CSV ({error}); look for a "
                    "quotation mark without its partner"
                ) from None
        else:
            for line in map(str.strip, file):
                words = line.split("\t" if "\t" in line else None)
                if len(words) > 1 and "\t" not in line and not is_file(words[0]) and is_file(line):
                    whole = (root / _from_root(root, listed, line)).is_file()
                    words = [line] if whole else words
                if words:
                    yield words
