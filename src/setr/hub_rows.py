"""Hugging Face data sets of images and masks (extra `hf`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setr.bands import Bands
from setr.data_yaml import HUB
from setr.dataset import Dataset
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.images import Source
from setr.labels import Labels, known_labels
from setr.pairing import NoSplitError
from setr.pairs import Pair

MASK_KEYS = ("annotation", "mask", "label", "labels", "semantic_segmentation", "segmentation_mask")


@dataclass(frozen=True)
class HubDataset(Dataset):
    """A split of a Hugging Face data set whose rows hold an image and a mask as files.

    Attributes:
        rows: the `datasets.Dataset`, its images undecoded.
        mask_column: name of the column with masks.
    """

    rows: Any = None
    mask_column: str = ""

    @property
    def version(self) -> str:
        """What the library knows the rows by."""
        return str(self.rows._fingerprint)

    def sources(self, index: int) -> tuple[Source, Source | None]:
        """Bytes (or paths) of image and mask as the data set stores them."""
        row = self.rows[index]
        image, mask = row["image"], row[self.mask_column]
        return image["bytes"] or image["path"], mask["bytes"] or mask["path"]


def open_hub(
    path: str,
    split: str,
    labels: Labels | str | None,
    renamed: Mapping[str, tuple[str, ...]],
    bands: Bands | None,
) -> Dataset:
    """A Hugging Face data set; its masks' ids need `labels`."""
    try:
        import datasets as hub
    except ImportError:
        raise SetrError(f'{path}: needs Hugging Face datasets; pip install "setr[hf]"') from None
    if labels is None:
        raise SetrError(
            f"{path}: name the data set of its classes (--data.labels in training, --labels "
            f"elsewhere), or give a YAML file with 'path: {path}' and 'classes:' as the data",
            code=USAGE,
        )
    name = path.removeprefix(HUB)
    try:
        available = hub.load_dataset(name)
    except Exception as error:  # network, gating and format errors of several libraries
        raise SetrError(f"{path}: cannot load ({' '.join(str(error).split())[:160]})") from None
    key, *more = renamed.get(split, (split,))
    if more:
        raise SetrError(f"{path}: '{split}' names several splits; give one", code=USAGE)
    if key == "val" and key not in available and "validation" in available:
        key = "validation"
    if key not in available:
        kind = SetrError if split in renamed else NoSplitError
        raise kind(f"{path}: no split '{key}'; it has {', '.join(available)}", code=USAGE)
    rows = available[key]
    column = next((c for c in MASK_KEYS if c in rows.column_names), None)
    if "image" not in rows.column_names or column is None:
        raise SetrError(
            f"{path}: needs the columns image and one of {', '.join(MASK_KEYS)}; it has "
            f"{', '.join(rows.column_names)}",
            code=DATA_CHECK_FAILED,
        )
    for kept in ("image", column):
        rows = rows.cast_column(kept, hub.Image(decode=False))
    rows = rows.select_columns(["image", column])
    known = known_labels(labels) if isinstance(labels, str) else labels
    pairs = tuple(
        Pair(Path(f"{name}/{key}/{i:07d}"), Path(f"{name}/{key}/{i:07d}:{column}"))
        for i in range(len(rows))
    )
    return HubDataset(name, split, known, pairs, (), rows, column, bands=bands)
