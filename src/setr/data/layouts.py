"""Finds the files of a split: released layouts of known data sets, plain folders, lists.

Every layout is a function (root, split, wanted) -> `SplitFiles`, or None if the folder has another
layout. A folder that resembles a known layout but cannot be read is an error with the reason.

Layouts follow the data sets' own tools: cityscapesScripts README "Dataset Structure";
CSAILVision/sceneparsing README; Pascal Context as VOC 2010 devkit plus `SegmentationClassContext`
(mmsegmentation's converter) or the released `trainval/*.mat`; VOC 2012 devkit; COCO 2017.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from setr.data.mask_names import separate_masks
from setr.data.pairing import (
    MASK_FOLDERS,
    NoSplitError,
    SplitFiles,
    first_folder,
    is_file,
    listed_names,
    names_below,
    open_list,
    pair_folders,
    pair_names,
    refuse_missing,
    select_listed,
)
from setr.errors import DATA_CHECK_FAILED, DataError
from setr.reading.files import IMAGE_SUFFIXES, composed, stem_of, walk_images

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Folder names of each split."""
SPLIT_OF = {folder: split for split, folders in SPLIT_NAMES.items() for folder in folders}
LISTS = Path("ImageSets", "Segmentation")
"""Lists of image stems for each split in VOC's layout, which CVAT exports, too."""
BESIDE = "setr.yaml"
"""What `setr init-data` writes beside a data.yaml of another program."""
COLOUR_FILE, COLOURS_FILE = "labelmap.txt", "label_colors.txt"
"""CVAT's files of class names and their colours: of masks, and of CamVid and Cityscapes."""
_VOC_NAME = re.compile(r"(\d{4}_)?\d{6}")
_ADE_SPLITS = {"train": "training", "val": "validation", "test": "testing"}


def find_split(root: Path, split: str, wanted: str | None, *, listed: bool = True) -> SplitFiles:
    """Find the files of one split.

    Args:
        wanted: known data set that the user named; it selects the encoding of ids.
        listed: whether a list `SPLIT.txt` beside plain folders selects images.

    Raises:
        SetrError: no such split, or images without masks (exit code 3).
    """
    for layout in _LAYOUTS:
        found = layout(root, split, wanted or "")
        if found is not None:
            return found
    found = _plain(root, split)
    if found is not None:
        list_file = root / f"{split}.txt"
        return select_listed(found, list_file) if listed and list_file.is_file() else found
    raise NoSplitError(
        f"{root}: no split '{split}' found; looked for images/{split} + labels/{split} (or masks, "
        f"annotations), {split}/images + {split}/labels, {split} or {split}_images + "
        f"{split}_labels, {split} + {split}annot, {split} with x.jpg + x_mask.png, and the layouts "
        "of Cityscapes, ADE20K, Pascal Context, VOC and COCO; "
        "`setr init-data DIR` describes other folders",
        code=DATA_CHECK_FAILED,
    )


def split_lists(root: Path) -> dict[str, str]:
    """Split of each image stem, from lists such as CVAT's `Train.txt` and `Validation.txt`.

    They are in VOC's folder of lists or in the root.
    """
    found: dict[str, str] = {}
    for file in sorted([*root.glob("*.txt"), *(root / LISTS).glob("*.txt")]):
        split = SPLIT_OF.get(file.stem.lower())
        if split and not is_drafted(file):
            lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            names = map(str.strip, lines)
            found |= {stem_of(n) if is_file(n) else composed(n): split for n in names}
    return found


def listed_splits(root: Path, images: Iterable[str]) -> dict[str, str]:
    """Split of each image that `split_lists` has, by its path below its first folder."""
    listed = split_lists(root)
    stems = {image: stem_of(image.partition("/")[2] or image) for image in images}
    return {image: listed[stem] for image, stem in stems.items() if stem in listed}


def is_drafted(path: Path) -> bool:
    """Whether a list file was drafted by `setr init-data`: image and mask separated by a tab."""
    if not path.is_file():
        return False
    with open_list(path) as file:
        return "\t" in file.readline()


# --- released layouts -----------------------------------------------------------------------------


def _cityscapes(root: Path, split: str, wanted: str) -> SplitFiles | None:
    """`leftImg8bit/SPLIT/CITY` with `gtFine`, or with `gtCoarse` for splits without fine masks."""
    if not (root / "leftImg8bit" / split).is_dir():
        return None
    if (root / COLOURS_FILE).is_file():  # another data set, exported by CVAT in this layout
        return None
    images = names_below(root / "leftImg8bit" / split, f"leftImg8bit/{split}/")
    kind = next((k for k in ("gtFine", "gtCoarse") if (root / k / split).is_dir()), None)
    if kind is None:
        if split == "test":
            return SplitFiles(root, images, None, "cityscapes")
        raise DataError(f"{root}: neither gtFine/{split} nor gtCoarse/{split} exists")
    present = set(names_below(root / kind / split, f"{kind}/{split}/"))
    order = ("labelIds", "labelTrainIds")
    if wanted.endswith(":train_ids"):
        order = order[::-1]
    usable = [ids for ids in order if any(name.endswith(f"_{ids}.png") for name in present)]
    if not usable:
        raise DataError(
            f"{root}/{kind}/{split}: no *_labelIds.png; *_instanceIds.png hold object numbers, "
            "*_color.png colours and *_polygons.json polygons: make label ids with "
            "cityscapesScripts (csCreateTrainIdLabelImgs)"
        )
    masks = [
        f"{kind}/{split}/"
        + name.split("/", 2)[2].replace("_leftImg8bit.png", f"_{kind}_{usable[0]}.png")
        for name in images
    ]
    refuse_missing(root / kind / split, images, masks, present)
    labels = "cityscapes" if usable[0] == "labelIds" else "cityscapes:train_ids"
    return SplitFiles(root, images, masks, labels)


def _ade20k(root: Path, split: str, wanted: str) -> SplitFiles | None:
    """`images/training` and `annotations/training` of ADEChallengeData2016, images in `testing`.

    Other data sets have these folders, too; `ADE_*` images or the wanted classes confirm it.
    """
    if (root / "images" / "ADE").is_dir() or any(root.glob("ADE20K_2021*")):
        raise DataError(
            f"{root}: this is the full ADE20K (its *_seg.png encode thousands of classes in red "
            "and green); SETR's benchmark is SceneParsing-150: get ADEChallengeData2016"
        )
    root = first_folder(root, "ADEChallengeData2016")
    name = _ADE_SPLITS.get(split, split)
    images = root / "testing" if split == "test" else root / "images" / name
    if not images.is_dir() or name == split:
        return None
    if not wanted.startswith("ade20k") and next(images.glob("ADE_*"), None) is None:
        return None
    if split == "test":
        return SplitFiles(root, names_below(images, "testing/"), None, "ade20k")
    return pair_folders(root, f"images/{name}", f"annotations/{name}", "ade20k")


def _pascal_context(root: Path, split: str, wanted: str) -> SplitFiles | None:
    """VOC 2010 images with PNG masks, or with the released MATLAB labels.

    No split lists were released with the latter: their splits are those of VOC 2010's main task.
    """
    voc = first_folder(root, "VOCdevkit/VOC2010", "VOC2010")
    folders = [p for base in (voc, root) for p in sorted(base.glob("trainval*")) if p.is_dir()]
    mats = next((p for p in folders if next(p.glob("*.mat"), None)), None)
    has_png = (voc / "SegmentationClassContext").is_dir()
    if not has_png and (mats is None or not (voc / "JPEGImages").is_dir()):
        return None
    listed = voc / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not listed.is_file() and mats:
        listed = voc / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        return None
    names = listed_names(listed)
    base = wanted.partition(":")[0] or "pascal_context"
    if has_png and not (mats and wanted.endswith(":mat")):
        return pair_names(voc, names, "SegmentationClassContext", wanted or base)
    assert mats is not None
    return pair_names(voc, names, os.path.relpath(mats, voc), f"{base}:mat", ".mat")


def _voc(root: Path, split: str, wanted: str) -> SplitFiles | None:
    """`JPEGImages`, `SegmentationClass` and the list `ImageSets/Segmentation/SPLIT.txt`.

    Other data sets have these folders, too; VOC's image names or the wanted classes confirm it.
    """
    voc = first_folder(root, "VOCdevkit/VOC2012", "VOC2012")
    listed = voc / LISTS / f"{split}.txt"
    if not (voc / "SegmentationClass").is_dir() or not listed.is_file():
        return None
    if (voc / COLOUR_FILE).is_file():  # another data set, exported by CVAT in VOC's layout
        return None
    if wanted.startswith("pascal_context"):
        raise DataError(
            f"{voc}: contains VOC's masks but not Pascal Context's: looked for "
            f"SegmentationClassContext with ImageSets/SegmentationContext/{split}.txt, and for "
            f"trainval/*.mat here and in {root}"
        )
    names = listed_names(listed, lambda name: (voc / "JPEGImages" / f"{name}.jpg").is_file())
    is_voc = wanted.startswith("voc") or any(map(_VOC_NAME.fullmatch, names))
    return pair_names(voc, names, "SegmentationClass", "voc" if is_voc else None)


def _coco(root: Path, split: str, wanted: str) -> SplitFiles | None:
    """COCO-Stuff: images in `train2017`, masks in `stuffthingmaps` or `annotations/train2017`."""
    for images in (f"images/{split}2017", f"{split}2017"):
        for masks in (f"stuffthingmaps/{split}2017", f"annotations/{split}2017"):
            if (root / images).is_dir() and (root / masks).is_dir():
                return pair_folders(root, images, masks, "coco_stuff")
    return None


def _plain(root: Path, split: str) -> SplitFiles | None:
    """Images and masks in two folders with usual names, or in one folder."""
    candidates = [
        pair
        for name in SPLIT_NAMES.get(split, (split,))
        for pair in (
            *((f"images/{name}", f"{m}/{name}") for m in MASK_FOLDERS),
            *((f"{name}/images", f"{name}/{m}") for m in MASK_FOLDERS),
            (name, f"{name}annot"),
            *((name, f"{name}_{m}") for m in MASK_FOLDERS),
            *((f"{name}_images", f"{name}_{m}") for m in MASK_FOLDERS),
            (name, name),
        )
    ]
    for images, masks in candidates:
        if images == masks and not _holds_masks(root / images):
            continue
        if (root / images).is_dir() and (root / masks).is_dir():
            if split == "test" and not any((root / masks).iterdir()):  # as of Mapillary Vistas
                return SplitFiles(root, names_below(root / images, f"{images}/"), None)
            return pair_folders(root, images, masks, None)
    return None


def _holds_masks(folder: Path) -> bool:
    return folder.is_dir() and bool(separate_masks(walk_images(folder, IMAGE_SUFFIXES))[1])


_LAYOUTS: tuple[Callable[[Path, str, str], SplitFiles | None], ...] = (
    _cityscapes, _ade20k, _pascal_context, _voc, _coco,
)  # fmt: skip
