"""Drafts the `data.yaml` of a folder of one's own: finds images, masks, ids or colours, and splits.

Where there are outlines in place of masks, masks are drawn from them. What a program can see it
writes down (ids, colours, names in a classes file beside the data); what it cannot know it asks for
in a comment. Nothing is guessed silently.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

from setr.data.band_draft import draft_bands
from setr.data.class_draft import draft_classes, listed_classes
from setr.data.data_yaml import SPLITS
from setr.data.layouts import SPLIT_OF, find_split, split_lists
from setr.data.pairing import MASK_FOLDERS, NoSplitError, masks_by_stem, open_list, separate_masks
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.outlines.class_masks import class_masks
from setr.outlines.files import find_outlines
from setr.outlines.index import DRAWN
from setr.outlines.masks import draw_masks, told
from setr.reading.files import printable, stem_of, walk_images, write_bytes

IMAGE_NAMES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASK_NAMES = (
    *(*MASK_FOLDERS, "mask", "label", "annotation"),
    *("ann_dir", "SegmentationClass", "SegmentationClassPNG", "gt", "GT"),
)
SHOWN = 5
TASK = r"task-\d+-annotation-"
"""Begins the masks of Label Studio."""


class Draft(NamedTuple):
    """A YAML file and the list files beside it, not yet written.

    Attributes:
        yaml: its text.
        lists: text of each list by file name.
        note: what was left out.
        name: of the YAML file.
    """

    yaml: str
    lists: dict[str, str]
    note: str = ""
    name: str = "data.yaml"

    @property
    def files(self) -> dict[str, str]:
        """All texts by file name."""
        return {self.name: self.yaml, **self.lists}


def draft(
    root: Path,
    *,
    val_share: float = 0.2,
    rest: str = "background",
    name: str = "data.yaml",
    class_key: str = "",
) -> Draft:
    """Describe a folder.

    Outlines, and masks of one class each, are drawn into its folder `masks_drawn`, anew each time.

    Args:
        root: holds images and masks, or outlines, with or without folders per split.
        val_share: share of the pairs that goes to the validation split where the folder has none;
            the choice depends on file names alone.
        rest: of outlines, the class of what none covers, or `ignore`.
        name: of the YAML file; lists beside another than data.yaml are called after it.
        class_key: of outlines in GeoJSON and of VIA, the property that names the class.

    Raises:
        SetrError: the layout is one that needs no description, or none that can be described; or a
            `class_key` for others.
    """
    outlined = class_masks(root, _mask_folders())
    if outlined is None:
        try:
            made = _of_masks(root, val_share, name)
        except SetrError as error:
            outlined = find_outlines(root, class_key) if error.code == DATA_CHECK_FAILED else None
            if outlined is None:
                raise
        else:
            _require_keyed(root, class_key, "masks")
            return made
    _require_keyed(root, class_key, outlined.kind)
    drawn = draw_masks(root, outlined, rest=rest)
    lists = _split_lists(drawn.pairs, val_share, drawn.splits)
    head = [
        f"# {len(drawn.pairs)} masks in {DRAWN} drawn by `setr init-data` from outlines "
        f"({outlined.kind})."
    ]
    notes = told(outlined.left_out), _left_out(outlined.alone, len(drawn.pairs), "outlines")
    note = "; ".join(filter(None, (*outlined.notes, *notes)))
    body = [
        *draft_bands([root / image for image, _ in drawn.pairs]),
        *listed_classes(dict(enumerate(drawn.classes)), drawn.pixels),
    ]
    return _composed(name, head, note, body, lists)


def _mask_folders() -> Iterator[tuple[str, str]]:
    """Folders of images and of their masks, whatever tells the splits."""
    for images, masks in product(IMAGE_NAMES, MASK_NAMES):
        yield images, masks
        yield from ((f"{split}/{images}", f"{split}/{masks}") for split in SPLIT_OF)


def _require_keyed(root: Path, class_key: str, kind: str) -> None:
    """Refuse a key that nothing would look for."""
    if class_key and kind not in ("GeoJSON", "VIA"):
        raise SetrError(
            f"--class-key {class_key}: is for outlines in GeoJSON or of VIA, and {root} has "
            f"{kind}; leave it out",
            code=USAGE,
        )


def _of_masks(root: Path, val_share: float, name: str) -> Draft:
    """Describe a folder of mask files."""
    pairs: list[tuple[str, str]] = []
    known: dict[str, str] = {}
    for split in SPLITS:
        try:
            found = find_split(root, split, None, listed=not _is_drafted(root / f"{split}.txt"))
        except NoSplitError:
            continue
        if found.labels:
            raise SetrError(
                f"{root}: is {found.labels.partition(':')[0]} in its released layout and needs no "
                "data.yaml; check it with `setr doctor`",
                code=USAGE,
            )
        ahead = "" if found.root == root else f"{found.root.relative_to(root).as_posix()}/"
        images = [ahead + image for image in found.images]
        pairs += zip(images, (ahead + mask for mask in found.masks or ()), strict=False)
        known |= dict.fromkeys(images, split)
    lists: dict[str, str] = {}
    alone: list[str] = []
    if not pairs:
        pairs, alone = _flat_pairs(root)
        listed = split_lists(root)
        stems = {i: stem_of(i.partition("/")[2] or i) for i, _ in pairs}
        known = {image: listed[stem] for image, stem in stems.items() if stem in listed}
        lists = _split_lists(pairs, val_share, known)
    elif "train" in known.values() and "val" not in known.values():
        lists = _split_lists(pairs, val_share, known)
    classes = draft_classes(root, [mask for _, mask in pairs])
    head = [f"# {len(pairs)} pairs found by `setr init-data`."]
    body = [*draft_bands([root / image for image, _ in pairs]), *classes]
    return _composed(name, head, _left_out(alone, len(pairs), "mask"), body, lists)


def _is_drafted(listed: Path) -> bool:
    """Whether a list file is of an earlier draft, which names both files with a tab between."""
    if not listed.is_file():
        return False
    with open_list(listed) as file:
        return "\t" in file.readline()


def _left_out(alone: list[str], count: int, what: str) -> str:
    """That images have no mask or no outlines, beside `count` that have; nothing if all have."""
    if not alone:
        return ""
    shown = ", ".join(alone[:SHOWN]) + (", …" if len(alone) > SHOWN else "")
    shown = " ".join(printable(shown).split())  # fits a comment
    return f"{len(alone)} of {count + len(alone)} images have no {what}, left out: {shown}"


def _composed(
    name: str, head: list[str], note: str, body: list[str], lists: dict[str, str]
) -> Draft:
    """The draft; `lists` are by split, none where folders tell the splits."""
    ahead = "" if name == "data.yaml" else f"{Path(name).stem}_"
    places = {split: f"{ahead}{split}.txt" for split in SPLITS if split in lists}
    lines = [*head, *([f"# {note}"] if note else ())]
    lines += [f"{split}: {place}" for split, place in places.items()]
    files = {place: lists[split] for split, place in places.items()}
    return Draft("\n".join([*lines, *body]) + "\n", files, note, name)


def write(root: Path, made: Draft) -> list[Path]:
    """Write a draft into the folder it describes; returns the files."""
    for name, text in made.files.items():
        write_bytes(root / name, text.encode("utf-8", "surrogateescape"))
    return [root / name for name in made.files]


def _flat_pairs(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of an image folder, or images here, and a mask folder without splits, or of one folder.

    Returns:
        The pairs by stem, and images without a mask.
    """
    for images, masks in (
        *product(IMAGE_NAMES, MASK_NAMES),
        *((n, n) for n in IMAGE_NAMES),
        *(("", n) for n in MASK_NAMES),
        ("", ""),
    ):
        if not (root / images).is_dir() or not (root / masks).is_dir():
            continue
        files = walk_images(root / images)
        if masks and not images:
            files = [name for name in files if "/" not in name]
        files, found = (
            separate_masks(files) if images == masks else (files, walk_images(root / masks))
        )
        stems = [stem_of(name) for name in files]
        masks_of = masks_by_stem(files, found)
        ahead, behind = (f"{folder}/" if folder else "" for folder in (images, masks))
        pairs = [
            (ahead + name, behind + masks_of[stem])
            for name, stem in zip(files, stems, strict=True)
            if stem in masks_of
        ]
        if pairs:
            paired = {image for image, _ in pairs}
            return pairs, [ahead + name for name in files if ahead + name not in paired]
        first = os.path.basename(found[0]) if found else ""
        alike = [name for name in found if os.path.basename(name) == first]
        if len(alike) > 1 and stem_of(first) in stems:
            raise SetrError(
                f"{root / masks}: an image has several masks, as {' and '.join(alike[:2])}; "
                "if each folder is of one class, save 0 and one other value in each file, or paint "
                "them over each other into one file for each image, with one class id per pixel",
                code=DATA_CHECK_FAILED,
            )
    task = next((n for n in walk_images(root) if re.match(TASK, os.path.basename(n))), None)
    if task is not None:
        raise SetrError(
            f"{root / task}: Label Studio's PNG export names tasks, not images; export JSON in its "
            "place, put it beside the images, and run this again",
            code=DATA_CHECK_FAILED,
        )
    raise SetrError(
        f"{root}: no image folder ({', '.join(IMAGE_NAMES)}) with a mask folder "
        f"({', '.join(MASK_NAMES)}) of the same file names, and no outlines (LabelMe, COCO, "
        "YOLO, GeoJSON, Supervisely, CVAT, VIA, Label Studio, V7); "
        "rename the folders, or list the pairs in train.csv and val.csv (columns image,mask) and "
        "name these in data.yaml",
        code=DATA_CHECK_FAILED,
    )


def _split_lists(
    pairs: list[tuple[str, str]], val_share: float, known: Mapping[str, str]
) -> dict[str, str]:
    """Text of the list of each split; at least one pair each where there are two.

    Pairs whose image has a known split, or lies in a folder called after one (`images/training`),
    stay in it: what is for testing is never trained on. The others are for training, or chosen from
    by name where no validation split is known.
    """
    parts: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        folders = pair[0].lower().split("/")[:-1]
        by_folder = next((SPLIT_OF[name] for name in folders if name in SPLIT_OF), "")
        parts.setdefault(known.get(pair[0], by_folder), []).append(pair)
    train = [*parts.pop("train", []), *parts.pop("", [])]
    if not train or "val" not in parts:
        rest = [*train, *parts.pop("val", [])] or parts.pop("test")
        parts |= _by_name(rest, val_share)
    else:
        parts["train"] = train
    return {
        split: "".join(f"{image}\t{mask}\n" for image, mask in sorted(part))
        for split, part in parts.items()
    }


def _by_name(pairs: list[tuple[str, str]], val_share: float) -> dict[str, list[tuple[str, str]]]:
    """A split by checksums of the names, so that it stays as it is when files are added."""
    order = sorted(pairs, key=lambda pair: zlib.crc32(pair[0].encode("utf-8", "surrogateescape")))
    count = min(max(1, round(len(order) * val_share)), max(len(order) - 1, 1))
    return {"val": order[:count], "train": order[count:] or order}
