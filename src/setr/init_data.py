"""Drafting `data.yaml` for a folder: finds images, masks, ids or colours, and splits.

Outlines are drawn into masks first. What can be read from the data is written (ids, colours, names
from a classes file); what cannot be known is asked for in a comment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from setr.data.band_draft import draft_bands
from setr.data.class_draft import draft_classes, listed_classes
from setr.data.data_yaml import SPLITS
from setr.data.layouts import SPLIT_OF, find_split, split_lists
from setr.data.pairing import MASK_FOLDERS, NoSplitError, masks_by_stem, open_list, separate_masks
from setr.data.split_draft import draft_lists
from setr.data.tile_folder import TILES, TileFolder, has_tiles
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.outlines.class_masks import class_masks
from setr.outlines.files import find_outlines
from setr.outlines.index import DRAWN
from setr.outlines.masks import draw_masks, left_out_text
from setr.reading.files import printable, stem_of, walk_images, write_bytes

IMAGE_NAMES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASK_NAMES = (
    *(*MASK_FOLDERS, "mask", "label", "annotation"),
    *("ann_dir", "SegmentationClass", "SegmentationClassPNG", "gt", "GT"),
)
SHOWN = 5
TASK = r"task-\d+-annotation-"
"""Start of the file names in Label Studio's PNG export (regular expression)."""


class Draft(NamedTuple):
    """A YAML file and its list files, not yet written.

    Attributes:
        yaml: text of the YAML file.
        lists: text of each list by file name.
        note: message on what was left out, and on masks that look wrong.
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
    tile: int = 0,
) -> Draft:
    """Draft the description of a folder.

    Outlines and binary masks per class are drawn into its folder `masks_drawn`, again on each call.
    With `tile`, images and masks are cut into its folder `tiles` instead.

    Args:
        root: folder with images and masks, or outlines, with or without folders per split.
        val_share: fraction of the pairs for the validation split if the folder has none; the choice
            depends on file names, and on classes that a part would lack.
        rest: for outlines, the class of pixels outside all of them, or `ignore`.
        name: of the YAML file; unless it is data.yaml, its stem is a prefix of the list files.
        class_key: for GeoJSON, Shapefile, GeoPackage and VIA, the property that names the class.
        tile: most pixels a side of the tiles; 0 to use the images as they are.

    Raises:
        SetrError: a known data set that needs no description, an unknown layout, a `class_key` for
            other formats, or images that cannot be cut.
    """
    if not tile:
        return _draft(root, val_share, rest, name, class_key, None)
    with TileFolder(root, tile) as tiles:
        made = _draft(root, val_share, rest, name, class_key, tiles)
        tiles.finish()
        return made


def _draft(
    root: Path, val_share: float, rest: str, name: str, class_key: str, tiles: TileFolder | None
) -> Draft:
    annotated = class_masks(root, _mask_folders())
    if annotated is None:
        try:
            from_masks = _draft_masks(root, val_share, name, tiles)
        except SetrError as error:
            annotated = find_outlines(root, class_key) if error.code == DATA_CHECK_FAILED else None
            if annotated is None:
                raise
            if tiles is not None:
                tiles.clear()
        else:
            _refuse_class_key(root, class_key, "masks")
            return from_masks
    if not annotated.has_properties:
        _refuse_class_key(root, class_key, annotated.kind)
    drawn = draw_masks(root, annotated, rest=rest, tiles=tiles)
    notes = [
        *annotated.notes,
        left_out_text(annotated.left_out),
        _left_out(annotated.unannotated, len(annotated.images), "outlines"),
    ]
    pairs, folder = drawn.pairs, DRAWN
    if tiles is None:
        lists = draft_lists(pairs, val_share, drawn.splits, drawn.by_mask)
    else:
        lists, left_out = tiles.divide(val_share, drawn.splits, drawn.by_mask)
        pairs, folder = tiles.pairs, TILES
        notes += left_out
    head = [
        f"# {len(pairs)} masks in {folder} drawn by `setr init-data` from outlines "
        f"({annotated.kind})."
    ]
    note = "; ".join(filter(None, notes))
    body = [
        *draft_bands([root / image for image, _ in pairs]),
        *listed_classes(dict(enumerate(drawn.classes)), drawn.pixels),
    ]
    return _composed(name, head, note, body, lists)


def _mask_folders() -> Iterator[tuple[str, str]]:
    """Pairs of image folder and mask folder to try, with and without splits."""
    for images, masks in product(IMAGE_NAMES, MASK_NAMES):
        yield images, masks
        yield from ((f"{split}/{images}", f"{split}/{masks}") for split in SPLIT_OF)


def _refuse_class_key(root: Path, class_key: str, kind: str) -> None:
    """Refuse a class key that would have no effect."""
    if class_key:
        raise SetrError(
            f"--class-key {class_key}: is for GeoJSON, Shapefile, GeoPackage and VIA, and {root} "
            f"has {kind}; leave it out",
            code=USAGE,
        )


def _draft_masks(root: Path, val_share: float, name: str, tiles: TileFolder | None) -> Draft:
    """Draft the description of a folder of mask files."""
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
        prefix = "" if found.root == root else f"{found.root.relative_to(root).as_posix()}/"
        images = [prefix + image for image in found.images]
        pairs += zip(images, (prefix + mask for mask in found.masks or ()), strict=False)
        known |= dict.fromkeys(images, split)
    divided = "train" not in known.values() or "val" in known.values()
    unpaired: list[str] = []
    if not pairs:
        divided = False
        pairs, unpaired = _flat_pairs(root)
        listed = split_lists(root)
        stems = {i: stem_of(i.partition("/")[2] or i) for i, _ in pairs}
        known = {image: listed[stem] for image, stem in stems.items() if stem in listed}
    notes = [_left_out(unpaired, len(pairs), "mask")]
    what = "pairs found"
    if tiles is None:
        classes = draft_classes(root, [mask for _, mask in pairs])
        lists = {} if divided else draft_lists(pairs, val_share, known, classes.by_mask)
    else:
        classes = draft_classes(root, tiles.cut_files(pairs))
        lists, left_out = tiles.divide(val_share, known, classes.by_mask)
        pairs, what = tiles.pairs, f"tiles in {TILES} cut"
        notes += left_out
    head = [f"# {len(pairs)} {what} by `setr init-data`."]
    note = "; ".join(filter(None, (*notes, classes.note)))
    body = [*draft_bands([root / image for image, _ in pairs]), *classes.lines]
    return _composed(name, head, note, body, lists)


def _is_drafted(path: Path) -> bool:
    """Whether a list file is from an earlier draft: image and mask separated by a tab."""
    if not path.is_file():
        return False
    with open_list(path) as file:
        return "\t" in file.readline()


def _left_out(unpaired: list[str], count: int, what: str) -> str:
    """Message on images without a mask or outlines, next to `count` with; empty if all have."""
    if not unpaired:
        return ""
    shown = ", ".join(unpaired[:SHOWN]) + (", …" if len(unpaired) > SHOWN else "")
    shown = " ".join(printable(shown).split())  # one line, for a YAML comment
    return f"{len(unpaired)} of {count + len(unpaired)} images have no {what}, left out: {shown}"


def _composed(
    name: str, head: list[str], note: str, body: list[str], lists: dict[str, str]
) -> Draft:
    """The draft; `lists` are by split, empty if folders define the splits."""
    names = {split: file for split, file in list_names(name).items() if split in lists}
    lines = [*head, *([f"# {note}"] if note else ())]
    lines += [f"{split}: {file}" for split, file in names.items()]
    files = {file: lists[split] for split, file in names.items()}
    return Draft("\n".join([*lines, *body]) + "\n", files, note, name)


def list_names(name: str) -> dict[str, str]:
    """The list file of each split, for a YAML file of this name."""
    prefix = "" if name == "data.yaml" else f"{Path(name).stem}_"
    return {split: f"{prefix}{split}.txt" for split in SPLITS}


def write(root: Path, made: Draft) -> list[Path]:
    """Write a draft into its folder and return the files."""
    for name, text in made.files.items():
        write_bytes(root / name, text.encode("utf-8", "surrogateescape"))
    return [root / name for name in made.files]


def _flat_pairs(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of images and masks without split folders, also from one folder for both.

    Returns:
        The pairs with equal stems, and the images without a mask.
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
        if has_tiles(root / images):
            files = [name for name in files if not name.startswith(f"{TILES}/")]
        if masks and not images:
            files = [name for name in files if "/" not in name]
        files, found = (
            separate_masks(files) if images == masks else (files, walk_images(root / masks))
        )
        stems = [stem_of(name) for name in files]
        masks_of = masks_by_stem(files, found)
        image_prefix, mask_prefix = (f"{folder}/" if folder else "" for folder in (images, masks))
        pairs = [
            (image_prefix + name, mask_prefix + masks_of[stem])
            for name, stem in zip(files, stems, strict=True)
            if stem in masks_of
        ]
        if pairs:
            paths = [image_prefix + name for name in files]
            paired = {image for image, _ in pairs}
            return pairs, [path for path in paths if path not in paired]
        first = os.path.basename(found[0]) if found else ""
        same_name = [name for name in found if os.path.basename(name) == first]
        if len(same_name) > 1 and stem_of(first) in stems:
            raise SetrError(
                f"{root / masks}: an image has several masks, as {' and '.join(same_name[:2])}; "
                "if each folder is of one class, save 0 and one other value in each file, or merge "
                "the masks of an image into one file with one class id per pixel",
                code=DATA_CHECK_FAILED,
            )
    task = next((n for n in walk_images(root) if re.match(TASK, os.path.basename(n))), None)
    if task is not None:
        raise SetrError(
            f"{root / task}: Label Studio's PNG export names tasks, not images; export as JSON "
            "instead, put that file next to the images, and run this again",
            code=DATA_CHECK_FAILED,
        )
    raise SetrError(
        f"{root}: no image folder ({', '.join(IMAGE_NAMES)}) with a mask folder "
        f"({', '.join(MASK_NAMES)}) with the same file names, and no outlines (LabelMe, COCO, "
        "YOLO, GeoJSON, Shapefile, GeoPackage, Supervisely, CVAT, VIA, Label Studio, V7); "
        "rename the folders, or list the pairs in train.csv and val.csv (columns image,mask) and "
        "give these files in data.yaml",
        code=DATA_CHECK_FAILED,
    )
