"""Finds all images and masks of a folder, and their splits as far as the folder has them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from setr.data.data_yaml import SPLITS
from setr.data.flat_pairs import chosen_pairs, flat_pairs, inventory, unused_files
from setr.data.layouts import find_split, is_drafted, listed_splits
from setr.data.pairing import NoSplitError
from setr.errors import UsageError
from setr.reading.files import unread_text


class FoundPairs(NamedTuple):
    """Images with masks.

    Attributes:
        pairs: image and mask, relative to the folder.
        splits: by image, where folders or lists define them.
        is_divided: folders or lists define all splits that training needs, under names that are
            found without a list.
        unpaired: images without a mask.
        unused: message on images that are neither; empty without any.
    """

    pairs: list[tuple[str, str]]
    splits: dict[str, str]
    is_divided: bool
    unpaired: list[str]
    unused: str


def find_pairs(root: Path, images: str = "", masks: str = "") -> FoundPairs:
    """Find the images and masks below a folder.

    Args:
        images: see `chosen_pairs`; empty to look for the usual names.
        masks: the same.

    Raises:
        SetrError: a known data set that needs no description, or an unknown layout.
    """
    pairs: list[tuple[str, str]] = []
    splits: dict[str, str] = {}
    for split in () if images else SPLITS:
        try:
            found = find_split(root, split, None, listed=not is_drafted(root / f"{split}.txt"))
        except NoSplitError:
            continue
        if found.labels:
            raise UsageError(
                f"{root}: is {found.labels.partition(':')[0]} in its released layout and needs no "
                "data.yaml; check it with `setr doctor`"
            )
        prefix = "" if found.root == root else f"{found.root.relative_to(root).as_posix()}/"
        names = [prefix + image for image in found.images]
        pairs += zip(names, (prefix + mask for mask in found.masks or ()), strict=False)
        splits |= dict.fromkeys(names, split)
    is_divided = "train" not in splits.values() or "val" in splits.values()
    unpaired: list[str] = []
    if not pairs:
        is_divided = False
        pairs, unpaired = chosen_pairs(root, images, masks) if images else flat_pairs(root)
        splits = listed_splits(root, [image for image, _ in pairs])
    used = [*pairs, *((image, "") for image in unpaired)]
    unused = "; ".join(filter(None, (inventory(unused_files(root, used)), unread_text(root))))
    return FoundPairs(pairs, splits, is_divided, unpaired, unused)
