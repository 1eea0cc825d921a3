"""Drafts the `data.yaml` of a folder of one's own: finds images, masks, ids or colours, and splits.

What a program can see it writes down (ids, colours, names in a classes file beside the data); what
it cannot know it asks for in a comment. Nothing is guessed silently.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from setr.band_draft import draft_bands
from setr.class_files import names_by_colour, names_by_id
from setr.data_yaml import SPLITS
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.files import walk_images, write_bytes
from setr.layouts import SPLIT_NAMES, find_split
from setr.masks import read_mask
from setr.pairing import MASK_FOLDERS, NoSplitError, apart, masks_by_stem

IMAGE_NAMES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASK_NAMES = (
    *(*MASK_FOLDERS, "mask", "label", "annotation"),
    *("ann_dir", "SegmentationClass", "gt", "GT"),
)
MOST_VALUES = 256
"""More ids or colours than this are no classes."""
SHOWN = 5
SPLIT_OF = {folder: split for split, folders in SPLIT_NAMES.items() for folder in folders}


class Draft(NamedTuple):
    """A data.yaml and the list files beside it, not yet written; `note` tells what was left out."""

    yaml: str
    lists: dict[str, str]
    note: str = ""


def draft(root: Path, *, val_share: float = 0.2) -> Draft:
    """Describe a folder.

    Args:
        root: holds images and masks, with or without folders per split.
        val_share: share of the pairs that goes to the validation split where the folder has none;
            the choice depends on file names alone.

    Raises:
        SetrError: the layout is one that needs no description, or none that can be described.
    """
    pairs: list[tuple[str, str]] = []
    splits: dict[str, str] = {}
    for split in SPLITS:
        try:
            found = find_split(root, split, None)
        except NoSplitError:
            continue
        if found.labels:
            raise SetrError(
                f"{root}: is {found.labels.partition(':')[0]} in its released layout and needs no "
                "data.yaml; check it with `setr doctor`",
                code=USAGE,
            )
        splits[split] = ""
        pairs += zip(found.images, found.masks or (), strict=False)
    lists: dict[str, str] = {}
    alone: list[str] = []
    if not pairs:
        pairs, alone = _flat_pairs(root)
        lists = _split_lists(pairs, val_share)
        splits = {split: f"{split}.txt" for split in SPLITS if f"{split}.txt" in lists}
    ids, colours = _values(root, [mask for _, mask in pairs])
    if colours:
        body = _colour_classes(colours, names_by_colour(root))
    else:
        body = _id_classes(ids, names_by_id(root))
    head = [f"# {len(pairs)} pairs found by `setr init-data`; check with `setr doctor {root}`."]
    note = ""
    if alone:
        shown = ", ".join(alone[:SHOWN]) + (", …" if len(alone) > SHOWN else "")
        shown = " ".join(shown.encode("utf-8", "replace").decode().split())  # fits a comment
        note = f"{len(alone)} of {len(pairs) + len(alone)} images have no mask, left out: {shown}"
        head.append(f"# {note}")
    head += [f"{split}: {place}" for split, place in splits.items() if place]
    head += draft_bands([root / image for image, _ in pairs])
    return Draft("\n".join([*head, *body]) + "\n", lists, note)


def write(root: Path, made: Draft) -> list[Path]:
    """Write a draft into the folder it describes; returns the files."""
    files = {"data.yaml": made.yaml, **made.lists}
    for name, text in files.items():
        write_bytes(root / name, text.encode("utf-8", "surrogateescape"))
    return [root / name for name in files]


def _flat_pairs(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of an image folder and a mask folder without splits, or of one folder that holds both.

    Returns:
        The pairs by stem, and images without a mask.
    """
    for images, masks in (
        *product(IMAGE_NAMES, MASK_NAMES),
        *((n, n) for n in IMAGE_NAMES),
        ("", ""),
    ):
        if not (root / images).is_dir() or not (root / masks).is_dir():
            continue
        files = walk_images(root / images)
        files, found = apart(files) if images == masks else (files, walk_images(root / masks))
        stems = [os.path.splitext(name)[0] for name in files]
        masks_of = masks_by_stem(stems, found)
        ahead, behind = (f"{folder}/" if folder else "" for folder in (images, masks))
        pairs = [
            (ahead + name, behind + masks_of[stem])
            for name, stem in zip(files, stems, strict=True)
            if stem in masks_of
        ]
        if pairs:
            paired = {image for image, _ in pairs}
            return pairs, [ahead + name for name in files if ahead + name not in paired]
    if next(root.rglob("*.json"), None) and not any((root / m).is_dir() for m in MASK_NAMES):
        raise SetrError(
            f"{root}: holds outlines in JSON but no mask images; export masks first (labelme: "
            "labelme_export_voc)",
            code=DATA_CHECK_FAILED,
        )
    raise SetrError(
        f"{root}: no image folder ({', '.join(IMAGE_NAMES)}) with a mask folder "
        f"({', '.join(MASK_NAMES)}) of the same file names; rename them, or list the pairs in "
        "train.csv and val.csv (columns image,mask) and name these in data.yaml",
        code=DATA_CHECK_FAILED,
    )


def _split_lists(pairs: list[tuple[str, str]], val_share: float) -> dict[str, str]:
    """train.txt and val.txt; at least one pair each where there are two.

    Pairs in folders called after splits (`images/training`) stay in them.
    """
    parts: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        folders = pair[0].lower().split("/")[:-1]
        split = next((SPLIT_OF[name] for name in folders if name in SPLIT_OF), "")
        parts.setdefault(split, []).append(pair)
    if not {"train", "val"} <= set(parts) or "" in parts:
        parts = _by_name(pairs, val_share)
    return {
        f"{split}.txt": "".join(f"{image}\t{mask}\n" for image, mask in sorted(part))
        for split, part in parts.items()
    }


def _by_name(pairs: list[tuple[str, str]], val_share: float) -> dict[str, list[tuple[str, str]]]:
    """A split by checksums of the names, so that it stays as it is when files are added."""
    order = sorted(pairs, key=lambda pair: zlib.crc32(pair[0].encode("utf-8", "surrogateescape")))
    count = min(max(1, round(len(order) * val_share)), max(len(order) - 1, 1))
    return {"val": order[:count], "train": order[count:] or order}


def _values(root: Path, masks: list[str]) -> tuple[Counter[int], Counter[int]]:
    """Pixel counts of the ids, or of the colours (as 0xrrggbb), over all masks."""
    ids: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    for values, target in _mask_values(root, masks, ids, colours):
        unique, counts = np.unique(values, return_counts=True)
        target.update(dict(zip(unique.tolist(), counts.tolist(), strict=True)))
        if len(target) > MOST_VALUES:
            kind = "colours" if target is colours else "ids"
            raise SetrError(
                f"{root}: the masks hold more than {MOST_VALUES} {kind}; such masks are blurred, "
                "numbered by object, or photos: export one id or colour per class",
                code=DATA_CHECK_FAILED,
            )
    if ids and colours:
        raise SetrError(
            f"{root}: some masks hold ids, others colours; export all in one way",
            code=DATA_CHECK_FAILED,
        )
    return ids, colours


def _mask_values(
    root: Path, masks: list[str], ids: Counter[int], colours: Counter[int]
) -> Iterator[tuple[np.ndarray, Counter[int]]]:
    for name in masks:
        try:
            yield read_mask(root / name), ids
        except SetrError as error:
            if "colour mask" not in str(error):
                raise
            rgb = read_mask(root / name, rgb=True).astype(np.int32)
            yield rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2], colours


def _id_classes(ids: Counter[int], names: dict[int, str]) -> list[str]:
    if set(ids) <= {0, 255} and 255 in ids and len(names) < 3:
        first, second = names.values() if len(names) == 2 else ("background", "foreground")
        return [
            "# the masks hold 0 and 255 only: 255 is taken as a class here, not as ignore",
            f"classes: [{_quote(first)}, {_quote(second)}]",
            f"label_map: {{0: {_quote(first)}, 255: {_quote(second)}}}",
        ]
    naming = names or {i: f"class_{i}" for i in sorted(set(ids) - {255})}
    ignored = sorted(set(ids) - set(naming))
    total = sum(ids.values())
    hint = "# name the classes, here and in label_map; ids to leave out go to 'ignore'"
    lines = [] if names else [hint]
    lines.append("classes:")
    lines += [f"  - {_quote(name)}" for name in naming.values()]
    lines.append("label_map:  # id in the masks: class, or ignore")
    lines += [
        f"  {i}: {_quote(name)}  # {100 * ids[i] / total:.2f} % of the pixels"
        for i, name in naming.items()
    ]
    lines += [f"  {i}: ignore  # {100 * ids[i] / total:.2f} % of the pixels" for i in ignored]
    return lines


def _colour_classes(colours: Counter[int], names: dict[int, str]) -> list[str]:
    total = sum(colours.values())
    order = sorted(colours)
    naming = {c: _quote(names[c]) if c in names else f"class_{k}" for k, c in enumerate(order)}
    lines = (
        []
        if set(colours) <= set(names)
        else ["# name the classes; colours to leave out go to 'ignore' (and out of classes)"]
    )
    lines.append("classes:")
    lines += [f"  {naming[c]}: [{c >> 16}, {c >> 8 & 255}, {c & 255}]" for c in order]
    lines.append("colour_map:  # colour in the masks: class, or ignore")
    lines += [
        f'  "#{c:06x}": {naming[c]}  # {100 * colours[c] / total:.2f} % of the pixels'
        for c in order
    ]
    return lines


def _quote(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
