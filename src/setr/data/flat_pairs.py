"""Pairs of images and masks in folders that do not follow the layouts of splits.

Their names may be those of other toolkits, or of CVAT's exports as CamVid and Cityscapes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from setr.data.layouts import SPLIT_OF
from setr.data.pairing import MASK_FOLDERS, masks_by_stem, separate_masks
from setr.data.tile_folder import TILES, has_tiles
from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.reading.files import printable, stem_of, walk_images

IMAGE_NAMES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASK_NAMES = (
    *(*MASK_FOLDERS, "mask", "label", "annotation"),
    *("ann_dir", "SegmentationClass", "SegmentationClassPNG", "gt", "GT"),
)
OUTLINES = (
    "LabelMe, COCO, YOLO, GeoJSON, Shapefile, GeoPackage, Supervisely, CVAT, VIA, Label Studio, "
    "Labelbox, V7"
)
"""Whose outlines are drawn as masks."""
_LIST_THEM = (
    "list the pairs in train.csv and val.csv (columns image,mask) and give these files in data.yaml"
)
TASK = r"task-\d+-annotation-"
"""Start of the file names in Label Studio's PNG export (regular expression)."""


def mask_folders() -> Iterator[tuple[str, str]]:
    """Pairs of image folder and mask folder to try, with and without splits."""
    for images, masks in product(IMAGE_NAMES, MASK_NAMES):
        yield images, masks
        yield from ((f"{split}/{images}", f"{split}/{masks}") for split in SPLIT_OF)


def flat_pairs(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of images and masks without split folders, also from one folder for both.

    Returns:
        The pairs with equal stems, and the images without a mask.

    Raises:
        SetrError: no such folders, or several masks for an image (exit code 3).
    """
    for folders in (
        *([pair] for pair in product(IMAGE_NAMES, MASK_NAMES)),
        *([(name, name)] for name in IMAGE_NAMES),
        *([("", name)] for name in MASK_NAMES),
        _annotated_folders(root),
        [("", "")],
    ):
        found = [_paired(root, *pair) for pair in folders if _are_folders(root, *pair)]
        pairs = [pair for part, _ in found for pair in part]
        if pairs:
            return pairs, [image for _, images in found for image in images]
    pairs, unpaired = _cityscapes_pairs(root)
    if pairs:
        return pairs, unpaired
    task = next((n for n in walk_images(root) if re.match(TASK, os.path.basename(n))), None)
    if task is not None:
        raise SetrError(
            f"{root / task}: Label Studio's PNG export names tasks, not images; export as JSON "
            "instead, put that file next to the images, and run this again",
            code=DATA_CHECK_FAILED,
        )
    _refuse_other_names(root)
    raise SetrError(
        f"{root}: no image folder ({', '.join(IMAGE_NAMES)}) with a mask folder "
        f"({', '.join(MASK_NAMES)}) with the same file names, and no outlines ({OUTLINES}); rename "
        f"the folders, or {_LIST_THEM}",
        code=DATA_CHECK_FAILED,
    )


def _are_folders(root: Path, *names: str) -> bool:
    return all((root / name).is_dir() for name in names)


def _annotated_folders(root: Path) -> list[tuple[str, str]]:
    """`default` and `defaultannot`, as CVAT writes each subset of a CamVid export."""
    names = sorted(path.name for path in root.iterdir())
    return [(name, f"{name}annot") for name in names if f"{name}annot" in names]


def _paired(root: Path, images: str, masks: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of two folders, which may be the same, and images without a mask."""
    files = walk_images(root / images)
    if has_tiles(root / images):
        files = [name for name in files if not name.startswith(f"{TILES}/")]
    if masks and not images:
        files = [name for name in files if "/" not in name]
    files, found = separate_masks(files) if images == masks else (files, walk_images(root / masks))
    masks_of = masks_by_stem(files, found)
    image_prefix, mask_prefix = (f"{folder}/" if folder else "" for folder in (images, masks))
    pairs = [
        (image_prefix + name, mask_prefix + masks_of[stem_of(name)])
        for name in files
        if stem_of(name) in masks_of
    ]
    if not pairs:
        _refuse_masks_of_folders(root / masks, files, found)
    return pairs, [image_prefix + name for name in files if stem_of(name) not in masks_of]


def _refuse_masks_of_folders(place: Path, files: list[str], masks: list[str]) -> None:
    """Raise an error if subfolders have masks of the same name, and this is that of an image."""
    first = os.path.basename(masks[0]) if masks else ""
    same_name = [name for name in masks if os.path.basename(name) == first]
    if len(same_name) > 1 and stem_of(first) in map(stem_of, files):
        raise SetrError(
            f"{place}: an image has several masks, as {' and '.join(same_name[:2])}; if each "
            "folder is of one class, save 0 and one other value in each file, or merge the masks "
            "of an image into one file with one class id per pixel",
            code=DATA_CHECK_FAILED,
        )


def _refuse_other_names(root: Path) -> None:
    """Raise an error if there is a folder of images and one of masks, but no common names."""
    named = product(IMAGE_NAMES, MASK_NAMES)
    pair = next((pair for pair in named if _are_folders(root, *pair)), None)
    if pair is None:
        return
    found = [_contents(root / folder) for folder in pair]
    raise SetrError(
        f"{root}: no file in {pair[0]} ({found[0]}) is called as one in {pair[1]} ({found[1]}); "
        "save a mask of the same name for each image, as PNG with one class id per pixel, or "
        f"{_LIST_THEM}; outlines ({OUTLINES}) were not found either",
        code=DATA_CHECK_FAILED,
    )


def _contents(folder: Path) -> str:
    """What is in a folder, for messages: its images, or the file endings there."""
    images = walk_images(folder)
    if images:
        return f"{len(images)} images, as {printable(images[0])}"
    kinds = sorted({path.suffix for path in folder.iterdir() if path.is_file()} - {""})
    return f"no images, but {' and '.join(kinds)}" if kinds else "no images"


def _cityscapes_pairs(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of CVAT's export as Cityscapes: `imgsFine/leftImg8bit/SUBSET` and `gtFine/SUBSET`."""
    image_end, mask_end = "_leftImg8bit", "_gtFine_labelIds"
    folder = next((f for f in ("imgsFine/leftImg8bit", "leftImg8bit") if (root / f).is_dir()), "")
    if not folder or not (root / "gtFine").is_dir():
        return [], []
    masks = {stem_of(name): f"gtFine/{name}" for name in walk_images(root / "gtFine")}
    pairs, unpaired = [], []
    for name in walk_images(root / folder):
        mask = masks.get(stem_of(name).removesuffix(image_end) + mask_end)
        if mask is None:
            unpaired.append(f"{folder}/{name}")
        else:
            pairs.append((f"{folder}/{name}", mask))
    return pairs, unpaired
