"""Pairs of images and masks in folders that do not follow the layouts of splits.

Their names may be those of other toolkits, or of CVAT's exports as CamVid and Cityscapes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import product
from pathlib import Path

from setr.data.mask_names import masks_by_stem, separate_masks
from setr.data.name_patterns import fitting_keys, pairs_by_pattern, require_relative
from setr.data.pairing import MASK_FOLDERS, unique_stems
from setr.errors import DataError, UsageError
from setr.reading.files import is_cycle, printable, stem_of, unread_text, walk_images
from setr.reading.made_folders import made_folders

IMAGE_NAMES = (
    *("images", "image", "imgs", "img", "img_dir", "jpegimages"),
    *("images_png", "original"),
)
MASK_NAMES = (
    *(*MASK_FOLDERS, "mask", "label", "annotation"),
    *("ann_dir", "segmentationclass", "segmentationclasspng", "gt"),
    *("masks_png", "ground truth", "ground_truth", "groundtruth"),
)
"""Names of folders, in lower case; those in the data set may be in upper case."""
OUTLINES = (
    "LabelMe, COCO, YOLO, GeoJSON, Shapefile, GeoPackage, Supervisely, CVAT, VIA, Label Studio, "
    "Labelbox, V7"
)
"""Whose outlines are drawn as masks."""
_CITYSCAPES = "**_leftImg8bit", "gtFine/**_gtFine_labelIds"
"""Patterns of images and masks in CVAT's export as Cityscapes."""
_DRIVE = "**/images/{number}{any}", "**/1st_manual/{number}_manual1"
"""Patterns of DRIVE, whose folder `mask` has the fields of view, not the vessels."""
_SAY_WHICH = (
    "say which files belong together, with * for what is equal in both names: "
    "--images 'IMAGE_FOLDER/*' --masks 'MASK_FOLDER/*_mask', or '*_{class}' for a mask per class"
)
SHOWN = 6
"""Folders that are named in a message."""
TASK = r"task-\d+-annotation-"
"""Start of the file names in Label Studio's PNG export (regular expression)."""


def usual_folders(root: Path) -> Iterator[list[tuple[str, str]]]:
    """Folders of images and masks with usual names, in any case, beside each other.

    Yields:
        All pairs with the same names, first those directly in the root, then those below it.
    """
    beside = _folders(root)
    for parents in (beside.keys() & {""}, beside.keys() - {""}):
        for image, mask in product(IMAGE_NAMES, MASK_NAMES):
            both = [beside[p] for p in sorted(parents) if {image, mask} <= beside[p].keys()]
            if both:
                yield [(folders[image], folders[mask]) for folders in both]


def _folders(root: Path) -> dict[str, dict[str, str]]:
    """For each folder the paths of those in it, by name in lower case."""
    found: dict[str, dict[str, str]] = {}
    made = made_folders(root)
    for parent, names, _ in os.walk(root, followlinks=True):
        below = os.path.relpath(parent, root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".")
            and name not in made
            and not (os.path.islink(f"{parent}/{name}") and is_cycle(root, prefix + name))
        )
        found[prefix[:-1]] = {name.lower(): prefix + name for name in names}
        names[:] = [n for n in names if n.lower() not in (*IMAGE_NAMES, *MASK_NAMES)]
    return found


def flat_pairs(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of images and masks without split folders, also from one folder for both.

    Returns:
        The pairs with equal stems, and the images without a mask.

    Raises:
        SetrError: no such folders, or several masks for an image (exit code 3).
    """
    files = files_below(root)
    if fitting_keys(files, _DRIVE[1]):
        pairs, unpaired = pairs_by_pattern(files, *_DRIVE)
        if pairs:
            return pairs, unpaired
    here, usual = _folders(root)[""], list(usual_folders(root))
    at_root = [group for group in usual if "/" not in group[0][0]]
    for folders in (
        *at_root,
        *([(here[name],) * 2] for name in IMAGE_NAMES if name in here),
        *([("", here[name])] for name in MASK_NAMES if name in here),
        _annotated_folders(root),
        *usual[len(at_root) :],
        [("", "")],
    ):
        found = [_paired(root, *pair) for pair in folders]
        pairs = [pair for part, _ in found for pair in part]
        if pairs:
            return pairs, [image for _, images in found for image in images]
    for ahead in ("imgsFine/leftImg8bit/", "leftImg8bit/"):
        pairs, unpaired = pairs_by_pattern(files, ahead + _CITYSCAPES[0], _CITYSCAPES[1])
        if pairs:
            return pairs, unpaired
    task = next((n for n in files if re.match(TASK, os.path.basename(n))), None)
    if task is not None:
        raise DataError(
            f"{root / task}: Label Studio's PNG export names tasks, not images; export as JSON "
            "instead, put that file next to the images, and run this again"
        )
    _refuse_other_names(root)
    raise DataError(
        f"{root}: no image folder with masks beside it under usual names (as images and masks), "
        f"and no outlines ({OUTLINES}); it has {_inventory_of(root)}; {_SAY_WHICH}"
    )


def chosen_pairs(root: Path, images: str, masks: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of the images and masks that the user names, by folders or by patterns.

    Args:
        images: folder, or pattern (see `pairs_by_pattern`), relative to `root`.
        masks: the same for the masks. In two folders the names may differ in their ends.

    Returns:
        The pairs, and the images without a mask.

    Raises:
        SetrError: nothing there, or no pairs (exit code 2).
    """
    given = relative_places(root, images, masks)
    if all((root / value).is_dir() for value in given):
        pairs, unpaired = _paired(root, *given)
    else:
        patterns = [f"{value}/**" if (root / value).is_dir() else value for value in given]
        pairs, unpaired = pairs_by_pattern(files_below(root), *patterns)
    require_found(root, images, masks, pairs, unpaired)
    return pairs, unpaired


def relative_places(root: Path, images: str, masks: str) -> list[str]:
    """Two folders or patterns without `./`; empty for the root itself.

    Raises:
        SetrError: one of them leads out of the folder (exit code 2).
    """
    given = (("--images", images), ("--masks", masks))
    for option, value in given:
        require_relative(root, option, value)
    return ["" if Path(value) == Path(".") else Path(value).as_posix() for _, value in given]


def require_found(
    root: Path, images: str, masks: str, found: Collection[object], unpaired: list[str]
) -> None:
    """Refuse folders or patterns that no image and mask fit."""
    if not found:
        first = f"{len(unpaired)} images, as {printable(unpaired[0])}" if unpaired else "no image"
        raise UsageError(
            f"--images {images} --masks {masks}: {first} and no mask of the same name; "
            f"{root} has {_inventory_of(root)}; {_SAY_WHICH}"
        )


def files_below(root: Path) -> list[str]:
    """Images and masks below the root, without those that were made here."""
    made = tuple(f"{name}/" for name in made_folders(root))
    return [name for name in walk_images(root) if not name.startswith(made)]


def inventory(files: list[str]) -> str:
    """The folders of these files, for messages; empty without any."""
    folders = Counter(os.path.dirname(name) for name in files)
    first = {os.path.dirname(name): os.path.basename(name) for name in reversed(files)}
    shown = ", ".join(
        f"{printable(folder) or 'the folder itself'} ({count}, as {printable(first[folder])})"
        for folder, count in sorted(folders.items())[:SHOWN]
    )
    shown = " ".join(shown.split())  # one line, for a YAML comment
    return f"images in {shown}{', …' if len(folders) > SHOWN else ''}" if files else ""


def _inventory_of(root: Path) -> str:
    """What is below a folder, for messages: its images, and those that are not read."""
    return "; ".join(filter(None, (inventory(files_below(root)) or "no images", unread_text(root))))


def unused_files(root: Path, pairs: list[tuple[str, str]]) -> list[str]:
    """Images below the root in folders without any of these images and masks."""
    used = {os.path.dirname(name) for pair in pairs for name in pair if name}
    return [name for name in files_below(root) if os.path.dirname(name) not in used]


def _annotated_folders(root: Path) -> list[tuple[str, str]]:
    """`default` and `defaultannot`, as CVAT writes each subset of a CamVid export."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    return [(name, f"{name}annot") for name in names if f"{name}annot" in names]


def _paired(root: Path, images: str, masks: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of two folders, which may be the same, and images without a mask."""
    files = files_below(root / images)
    if masks and not images:
        files = [name for name in files if "/" not in name]
    files, found = separate_masks(files) if images == masks else (files, walk_images(root / masks))
    masks_of = masks_by_stem(files, found)
    unique_stems(images, [name for name in files if stem_of(name) in masks_of])
    image_prefix, mask_prefix = (f"{folder}/" if folder else "" for folder in (images, masks))
    pairs = [
        (image_prefix + name, mask_prefix + masks_of[stem_of(name)])
        for name in files
        if stem_of(name) in masks_of
    ]
    if not pairs:
        _refuse_masks_of_folders(root / masks, files, found)
    unpaired = [name for name in files if stem_of(name) not in masks_of]
    if images == masks:
        _refuse_further_masks(root / masks, unpaired, found)
    return pairs, [image_prefix + name for name in unpaired]


def _refuse_further_masks(place: Path, unpaired: list[str], masks: list[str]) -> None:
    """Raise an error if `x_mask_1` without a mask is a second one of `x`, beside `x_mask`."""
    stems = {stem_of(mask): mask for mask in masks}
    for name in unpaired:
        bare = re.sub(r"[_\-. ]?\d+$", "", stem_of(name))
        if bare in stems and bare != stem_of(name):
            raise DataError(
                f"{place}: {printable(stems[bare])} and {printable(name)} seem to be masks of two "
                "objects in one image; to join such masks, give a pattern with {any} for the "
                "number: --images '**/*' --masks '**/*_mask{any}'"
            )


def _refuse_masks_of_folders(place: Path, files: list[str], masks: list[str]) -> None:
    """Raise an error if subfolders have masks of the same name, and this is that of an image."""
    first = os.path.basename(masks[0]) if masks else ""
    same_name = [name for name in masks if os.path.basename(name) == first]
    if len(same_name) > 1 and stem_of(first) in map(stem_of, files):
        raise DataError(
            f"{place}: an image has several masks, as {' and '.join(same_name[:2])}; if each "
            "folder is of one class, save 0 and one other value in each file, or add --threshold "
            "128; else merge the masks of an image into one with one class id per pixel"
        )


def _refuse_other_names(root: Path) -> None:
    """Raise an error if there is a folder of images and one of masks, but no common names."""
    pair = next(usual_folders(root), [None])[0]
    if pair is None:
        return
    found = [_contents(root / folder) for folder in pair]
    images, masks = ({stem_of(name) for name in walk_images(root / folder)} for folder in pair)
    if {int(s) for s in images if s.isdecimal()} & {int(s) for s in masks if s.isdecimal()}:
        given = f"--images '{pair[0]}/{{number}}' --masks '{pair[1]}/{{number}}'"
        raise DataError(
            f"{root}: numbers in {pair[0]} ({found[0]}) and {pair[1]} ({found[1]}) have other "
            f"zeros; if they mean the same, {given} takes them as equal"
        )
    raise DataError(
        f"{root}: no file in {pair[0]} ({found[0]}) is called as one in {pair[1]} ({found[1]}); "
        f"save a mask of the same name for each image, as PNG with one class id per pixel, or "
        f"{_SAY_WHICH}; outlines ({OUTLINES}) were not found either"
    )


def _contents(folder: Path) -> str:
    """What is in a folder, for messages: its images, or the file endings there."""
    images = walk_images(folder)
    if images:
        return f"{len(images)} images, as {printable(images[0])}"
    kinds = sorted({path.suffix for path in folder.iterdir() if path.is_file()} - {""})
    return f"no images, but {' and '.join(kinds)}" if kinds else "no images"
