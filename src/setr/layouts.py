"""Where the files of a split lie: released layouts of known data sets, plain folders, lists.

Every layout is a function (root, split, wanted) -> `Found`, or None where the folder is of another
kind. What is almost a known layout but cannot be read is refused with the reason. Masks that lack
an image, and images that lack a mask, are never dropped silently.

Layouts after the data sets' own tools: cityscapesScripts README "Dataset Structure";
CSAILVision/sceneparsing README; Pascal Context as VOC 2010 devkit plus `SegmentationClassContext`
(mmsegmentation's converter) or the released `trainval/*.mat`; VOC 2012 devkit; COCO 2017.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.images import IMAGE_SUFFIXES, walk_images

MASK_FOLDERS = ("labels", "masks", "annotations")
_ADE_SPLITS = {"train": "training", "val": "validation", "test": "testing"}


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
    """

    root: Path
    images: Sequence[str]
    masks: Sequence[str] | None
    labels: str | None = None
    notes: tuple[str, ...] = ()


def find_split(root: Path, split: str, folders: Mapping[str, str], wanted: str | None) -> Found:
    """The files of one split.

    Args:
        root: folder of the data set.
        split: its name.
        folders: image folder or list file (.txt, .csv) by split, from the data set's YAML.
        wanted: known data set the user named; it chooses between encodings.

    Raises:
        SetrError: no such split, or files that do not fit together (exit code 3).
    """
    if split in folders:
        return _configured(root, root / folders[split])
    for layout in _LAYOUTS:
        found = layout(root, split, wanted or "")
        if found is not None:
            return found
    raise NoSplitError(
        f"{root}: no split '{split}' found; looked for images/{split} + labels/{split} (or masks, "
        f"annotations), {split}/images + {split}/labels, {split} + {split}annot, and the layouts "
        "of Cityscapes, ADE20K, Pascal Context, VOC and COCO; `setr init-data DIR` describes "
        "other folders",
        code=DATA_CHECK_FAILED,
    )


# --- released layouts -----------------------------------------------------------------------------


def _cityscapes(root: Path, split: str, wanted: str) -> Found | None:
    """`leftImg8bit/SPLIT/CITY`, and `gtFine` or, where that lacks the split, `gtCoarse`."""
    if not (root / "leftImg8bit").is_dir():
        return None
    if not (root / "leftImg8bit" / split).is_dir():
        return None
    images = _listed(root / "leftImg8bit" / split, f"leftImg8bit/{split}/")
    kind = next((k for k in ("gtFine", "gtCoarse") if (root / k / split).is_dir()), None)
    if kind is None:
        if split == "test":
            return Found(root, images, None, "cityscapes")
        raise _error(f"{root}: neither gtFine/{split} nor gtCoarse/{split} exists")
    present = set(_listed(root / kind / split, f"{kind}/{split}/"))
    order = ("labelIds", "labelTrainIds")
    if wanted.endswith(":train_ids"):
        order = order[::-1]
    usable = [ids for ids in order if any(name.endswith(f"_{ids}.png") for name in present)]
    if not usable:
        raise _error(
            f"{root}/{kind}/{split}: no *_labelIds.png; *_instanceIds.png hold object numbers, "
            "*_color.png colours and *_polygons.json outlines: make label ids with "
            "cityscapesScripts (csCreateTrainIdLabelImgs)"
        )
    masks = [
        f"{kind}/{split}/"
        + name.split("/", 2)[2].replace("_leftImg8bit.png", f"_{kind}_{usable[0]}.png")
        for name in images
    ]
    _refuse_missing(root / kind / split, images, masks, present)
    labels = "cityscapes" if usable[0] == "labelIds" else "cityscapes:train_ids"
    return Found(root, images, masks, labels)


def _ade20k(root: Path, split: str, wanted: str) -> Found | None:
    """`images/training` and `annotations/training` of ADEChallengeData2016."""
    if (root / "images" / "ADE").is_dir() or any(root.glob("ADE20K_2021*")):
        raise _error(
            f"{root}: this is the full ADE20K (its *_seg.png code thousands of classes in red and "
            "green); SETR's benchmark is SceneParsing-150: get ADEChallengeData2016"
        )
    root = _below(root, "ADEChallengeData2016")
    name = _ADE_SPLITS.get(split, split)
    if split == "test" and (root / "testing").is_dir():
        return Found(root, _listed(root / "testing", "testing/"), None, "ade20k")
    if not (root / "images" / name).is_dir() or name == split:
        return None
    return _folders(root, f"images/{name}", f"annotations/{name}", "ade20k")


def _pascal_context(root: Path, split: str, wanted: str) -> Found | None:
    """VOC 2010 images with index PNGs, or with the released MATLAB labels."""
    voc = _below(root, "VOCdevkit/VOC2010", "VOC2010")
    folders = [p for base in (voc, root) for p in sorted(base.glob("trainval*")) if p.is_dir()]
    mats = next((p for p in folders if next(p.glob("*.mat"), None)), None)
    has_png = (voc / "SegmentationClassContext").is_dir()
    if not has_png and (mats is None or not (voc / "JPEGImages").is_dir()):
        return None
    listed = voc / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not listed.is_file():
        return None
    names = _names(listed)
    base = wanted.partition(":")[0] or "pascal_context"
    if has_png and not (mats and wanted.endswith(":mat")):
        return _by_name(voc, names, "SegmentationClassContext", wanted or base)
    assert mats is not None
    return _by_name(voc, names, os.path.relpath(mats, voc), f"{base}:mat", ".mat")


def _voc(root: Path, split: str, wanted: str) -> Found | None:
    """`JPEGImages`, `SegmentationClass` and the list `ImageSets/Segmentation/SPLIT.txt`."""
    voc = _below(root, "VOCdevkit/VOC2012", "VOC2012")
    listed = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not (voc / "SegmentationClass").is_dir() or not listed.is_file():
        return None
    return _by_name(voc, _names(listed), "SegmentationClass", "voc")


def _coco(root: Path, split: str, wanted: str) -> Found | None:
    """COCO-Stuff: `train2017` images with `stuffthingmaps/train2017` or the same annotations."""
    for images in (f"images/{split}2017", f"{split}2017"):
        for masks in (f"stuffthingmaps/{split}2017", f"annotations/{split}2017"):
            if (root / images).is_dir() and (root / masks).is_dir():
                return _folders(root, images, masks, "coco_stuff")
    return None


def _plain(root: Path, split: str, wanted: str) -> Found | None:
    """Two folders of any names we know, with or without the list file `SPLIT.txt`."""
    candidates = [
        *((f"images/{split}", f"{m}/{split}") for m in MASK_FOLDERS),
        *((f"{split}/images", f"{split}/{m}") for m in MASK_FOLDERS),
        (split, f"{split}annot"),
    ]
    for images, masks in candidates:
        if (root / images).is_dir() and (root / masks).is_dir():
            found = _folders(root, images, masks, None)
            listed = root / f"{split}.txt"
            return _only_listed(found, listed) if listed.is_file() else found
    return None


_LAYOUTS: tuple[Callable[[Path, str, str], Found | None], ...] = (
    _cityscapes, _ade20k, _pascal_context, _voc, _coco, _plain,
)  # fmt: skip


# --- folders and lists named in a YAML file -------------------------------------------------------


def _configured(root: Path, place: Path) -> Found:
    if place.suffix.lower() in (".txt", ".csv"):
        return _read_list(root, place)
    relative = place.relative_to(root) if place.is_relative_to(root) else place
    for masks in MASK_FOLDERS:
        renamed = Path(*[masks if part == "images" else part for part in relative.parts])
        if renamed != relative and (root / renamed).is_dir():
            return _folders(root, str(relative), str(renamed), None)
    if not place.is_dir():
        raise _error(f"{place}: no such folder or list file")
    raise _error(
        f"{place}: found no mask folder; masks lie in the same path with 'images' replaced by "
        f"{', '.join(MASK_FOLDERS)}; for other places name both files in a list (.txt or .csv)"
    )


def _read_list(root: Path, listed: Path) -> Found:
    """`image mask` per line (tab or blank between), or a CSV with the columns image and mask.

    Names are relative to `root`. Whether the files exist is left to the check before training, so
    that a million lines open in seconds.
    """
    images, masks = [], []
    for row in _rows(listed):
        if len(row) != 2 or not all(row):
            raise _error(
                f"{listed}: '{' '.join(row)}' is not 'image mask'; separate the two by a tab, or "
                "use a .csv, where names contain blanks"
            )
        images.append(row[0])
        masks.append(row[1])
    if not images:
        raise _error(f"{listed}: lists no images")
    _refuse_doubles(listed, images, "listed more than once")
    return Found(root, images, masks)


def _rows(listed: Path) -> Iterator[Sequence[str]]:
    with _open_list(listed) as file:
        if listed.suffix.lower() == ".csv":
            table = csv.DictReader(file)
            if not {"image", "mask"} <= set(table.fieldnames or ()):
                raise _error(f"{listed}: the first line must name the columns image and mask")
            yield from ((row["image"] or "", row["mask"] or "") for row in table)
        else:
            words = (line.strip().split("\t" if "\t" in line else None) for line in file)
            yield from (row for row in words if row)


def _open_list(path: Path):  # type: ignore[no-untyped-def]
    try:
        return path.open(encoding="utf-8-sig", newline=None)
    except OSError as error:
        raise _error(f"{path}: cannot read ({error.strerror})") from None


def _names(listed: Path) -> list[str]:
    """First words of a list file; blank lines and line ends of any kind do not matter."""
    with _open_list(listed) as file:
        names = [line.split()[0] for line in file if line.strip()]
    _refuse_doubles(listed, names, "listed more than once")
    return names


# --- pairing --------------------------------------------------------------------------------------


def _folders(root: Path, images: str, masks: str, labels: str | None) -> Found:
    """Pair two folders by path and stem."""
    files = _listed(root / images, "")
    masks_of: dict[str, str] = {}
    for name in _listed(root / masks, "", IMAGE_SUFFIXES | {".mat"}):
        masks_of.setdefault(os.path.splitext(name)[0], name)
    stems = [os.path.splitext(name)[0] for name in files]
    _refuse_doubles(root / images, stems, "the stem of several images; masks would be mixed up")
    missing = [name for name, stem in zip(files, stems, strict=True) if stem not in masks_of]
    _refuse(root / masks, missing, len(files))
    pairs = [f"{masks}/{masks_of.pop(stem)}" for stem in stems]
    notes: tuple[str, ...] = ()
    if masks_of:
        shown = ", ".join(sorted(masks_of.values())[:5])
        notes = (f"{root / masks}: {len(masks_of)} masks have no image: {shown}",)
    return Found(root, [f"{images}/{name}" for name in files], pairs, labels, notes)


def _by_name(root: Path, names: list[str], masks: str, labels: str, suffix: str = ".png") -> Found:
    """Pair `JPEGImages/NAME.jpg` with `MASKS/NAME.png`."""
    images = [f"JPEGImages/{name}.jpg" for name in names]
    paired = [f"{masks}/{name}{suffix}" for name in names]
    for files in (images, paired):
        present = set(_listed((root / files[0]).parent, "", IMAGE_SUFFIXES | {".mat"}))
        missing = [f for f in files if os.path.basename(f) not in present]
        _refuse((root / files[0]).parent, missing, len(names), "file")
    return Found(root, images, paired, labels)


def _only_listed(found: Found, listed: Path) -> Found:
    """Keep what a list file names: any folder, any suffix."""
    assert found.masks is not None
    place = {Path(name).stem: i for i, name in enumerate(found.images)}
    stems = [Path(name).stem for name in _names(listed)]
    unknown = [stem for stem in stems if stem not in place]
    if unknown:
        raise _error(f"{listed}: {len(unknown)} entries have no image: {', '.join(unknown[:10])}")
    _refuse_doubles(listed, stems, "listed more than once")
    keep = [place[stem] for stem in stems]
    return found._replace(
        images=[found.images[i] for i in keep], masks=[found.masks[i] for i in keep]
    )


def _listed(folder: Path, prefix: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Names below a folder that must exist and hold images."""
    if not folder.is_dir():
        raise _error(f"{folder}: no such folder")
    names = walk_images(folder, suffixes)
    if not names:
        raise _error(f"{folder}: no images in this folder")
    return [prefix + name for name in names] if prefix else names


def _below(root: Path, *names: str) -> Path:
    return next((root / name for name in names if (root / name).is_dir()), root)


def _refuse_missing(place: Path, images: list[str], masks: list[str], present: set[str]) -> None:
    missing = [i for i, m in zip(images, masks, strict=True) if m not in present]
    _refuse(place, missing, len(images))


def _refuse(place: Path, missing: list[str], total: int, kind: str = "mask") -> None:
    if missing:
        shown = ", ".join(os.path.basename(name) for name in missing[:10])
        more = ", …" if len(missing) > 10 else ""
        raise _error(f"{place}: no {kind} for {len(missing)} of {total} images: {shown}{more}")


def _refuse_doubles(place: Path, names: list[str], what: str) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        doubles = sorted({n for n in names if n in seen or seen.add(n)})  # type: ignore[func-returns-value]
        raise _error(f"{place}: '{doubles[0]}' is {what} ({len(doubles)} such names)")


def _error(message: str) -> SetrError:
    return SetrError(message, code=DATA_CHECK_FAILED)
