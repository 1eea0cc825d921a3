"""The files of a split that a data.yaml names: an image folder, or a list of pairs or of images."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from setr.data.pairing import (
    MASK_FOLDERS,
    Found,
    data_error,
    is_file,
    open_list,
    pair_folders,
    refuse_doubles,
)
from setr.reading.files import stem_of


def configured_files(root: Path, place: Path, masks_dir: str | None = None) -> Found:
    """The pairs of an image folder or list file that a data.yaml names.

    Masks lie in the same path with `masks_dir` (or a usual name) in place of `images`.
    """
    if place.suffix.lower() in (".txt", ".csv"):
        return read_list(root, place, masks_dir)
    relative = place.relative_to(root) if place.is_relative_to(root) else place
    for masks in _names_of(masks_dir):
        renamed = Path(*[masks if part == "images" else part for part in relative.parts])
        if renamed != relative and (root / renamed).is_dir():
            return pair_folders(root, str(relative), str(renamed), None)
    if not place.is_dir():
        raise data_error(f"{place}: no such folder or list file")
    usual = ", ".join(_names_of(masks_dir))
    raise data_error(
        f"{place}: found no mask folder; masks lie in the same path with 'images' replaced by "
        f"{usual}; for other places name both files in a list (.txt or .csv)"
    )


def read_list(root: Path, listed: Path, masks_dir: str | None = None) -> Found:
    """`image mask` per line (tab or blank between), or a CSV with the columns image and mask.

    A list of images alone, as Ultralytics has them, is for masks of the same path and stem, with
    `masks_dir` (or a usual name) in place of the last `images`. Names are relative to `root`.
    Whether the files exist is left to the check before training, so that a million lines open in
    seconds; that alone tells a line with blanks that names one image from one that names two files.
    """
    images, masks = [], []
    rows = _rows(root, listed)
    first = next(rows, ())
    rows = chain((first,) if first else (), rows)
    if len(first) == 1 and is_file(first[0]):
        return _beside_images(root, listed, rows, masks_dir)
    for row in rows:
        if len(row) != 2 or not all(row):
            raise data_error(
                f"{listed}: '{' '.join(row)}' is not 'image mask'; separate the two by a tab, or "
                "use a .csv, where names contain blanks"
            )
        images.append(row[0])
        masks.append(row[1])
    if not images:
        raise data_error(f"{listed}: lists no images")
    refuse_doubles(listed, images, "listed more than once")
    return Found(root, images, masks)


def _beside_images(
    root: Path, listed: Path, rows: Iterable[Sequence[str]], masks_dir: str | None
) -> Found:
    """The pairs of a list of images; names that begin with `./` are relative to its own folder."""
    images, masks, folders = [], [], dict[str, dict[str, str]]()
    for row in rows:
        if len(row) != 1:
            raise data_error(
                f"{listed}: '{' '.join(row)}' is not one image, as the first line is; name image "
                "and mask in every line, or in none"
            )
        name = _from_root(root, listed, row[0])
        ahead, last, behind = f"/{name}".rpartition("/images/")
        places = [f"{ahead}/{m}/{behind}"[not os.path.isabs(name) :] for m in _names_of(masks_dir)]
        for folder, file in map(os.path.split, places if last else ()):
            if folder not in folders:
                inside = sorted(os.listdir(root / folder)) if (root / folder).is_dir() else []
                usable = (n for n in inside if is_file(n))
                folders[folder] = {stem_of(n): f"{folder}/{n}" for n in usable}
            mask = folders[folder].get(stem_of(file))
            if mask is not None:
                images.append(name)
                masks.append(mask)
                break
        else:
            looked = ", ".join(places) if last else "a folder 'images' in its path"
            raise data_error(
                f"{listed}: no mask for {name}; looked for {looked}; name both files in each line, "
                "or draw masks from outlines with `setr init-data`"
            )
    refuse_doubles(listed, images, "listed more than once")
    return Found(root, images, masks)


def _from_root(root: Path, listed: Path, name: str) -> str:
    """An image of a list of images, from the root on where it lies below."""
    name = str(listed.parent / name) if name.startswith("./") else name
    name = os.path.relpath(name, root) if Path(name).is_relative_to(root) else name
    return Path(name).as_posix()


def _names_of(masks_dir: str | None) -> tuple[str, ...]:
    return (masks_dir,) if masks_dir else MASK_FOLDERS


def _rows(root: Path, listed: Path) -> Iterator[Sequence[str]]:
    with open_list(listed) as file:
        if listed.suffix.lower() == ".csv":
            head = file.readline()
            file.seek(0)
            between = ";" if ";" in head and "," not in head else ","  # as spreadsheets write it
            table = csv.DictReader(file, delimiter=between, skipinitialspace=True)
            if not {"image", "mask"} <= set(table.fieldnames or ()):
                raise data_error(f"{listed}: the first line must name the columns image and mask")
            yield from ((row["image"] or "", row["mask"] or "") for row in table)
        else:
            for line in map(str.strip, file):
                words = line.split("\t" if "\t" in line else None)
                if len(words) > 1 and "\t" not in line and not is_file(words[0]) and is_file(line):
                    whole = (root / _from_root(root, listed, line)).is_file()
                    words = [line] if whole else words
                if words:
                    yield words
