"""Training and validation split of a run, opened by its settings or given from Python."""

from __future__ import annotations

import dataclasses

from setr.config import Config
from setr.data.dataset import Dataset
from setr.data.sampling import evenly_spaced
from setr.datasets import GIVEN, open_dataset
from setr.errors import UsageError


def open_splits(
    config: Config, data: tuple[Dataset, Dataset] | None
) -> tuple[Config, Dataset, Dataset]:
    """Open the splits that the settings name, unless splits are given.

    Args:
        data: training and validation split, or None.

    Returns:
        The settings, updated to name the splits in use, and the two splits, of the first the
        fraction that is trained on.

    Raises:
        SetrError: as `open_dataset`; or `data` is not two splits with different names and the same
            classes and channels.
    """
    if data is None:
        root, labels = config.data.root, config.data.labels
        names = config.data.train_split, config.data.val_split
        train, val = (open_dataset(root, split, labels) for split in names)
    else:
        config, train, val = _given_splits(config, data)
    return config, trained_part(train, config.data.fraction), val


def trained_part(train: Dataset, fraction: float) -> Dataset:
    """A fraction of a training split, at least one image, evenly spaced.

    Raises:
        SetrError: a part of shards.
    """
    if fraction == 1:
        return train
    return train.part(evenly_spaced(len(train), max(1, round(fraction * len(train)))))


def _given_splits(config: Config, data: tuple[Dataset, Dataset]) -> tuple[Config, Dataset, Dataset]:
    """The settings that name the splits, and these."""
    pair = isinstance(data, tuple | list) and len(data) == 2
    if not pair or not all(isinstance(split, Dataset) for split in data):
        raise UsageError(
            "data: give a training and a validation split, made by setr.wrap_dataset or "
            "setr.open_dataset, or the path of a folder or YAML file"
        )
    train, val = data
    if train.split == val.split:
        raise UsageError(
            f"data: both splits are called '{val.split}'; give the second another name, as 'val'"
        )
    for what, ours, theirs in (
        ("classes", train.labels.classes, val.labels.classes),
        ("channels", train.channels, val.channels),
        ("images", _images(train), _images(val)),
    ):
        if ours != theirs:
            raise UsageError(
                f"data: {what} {ours} in '{train.split}' but {theirs} in '{val.split}'; they must "
                "be the same"
            )
    named = dataclasses.replace(
        config.data,
        root=f"{GIVEN}{train.name}",
        labels=None,
        train_split=train.split,
        val_split=val.split,
    )
    return dataclasses.replace(config, data=named), train, val


def _images(split: Dataset) -> str:
    return str(split.bands) if split.bands else "of red, green and blue"
