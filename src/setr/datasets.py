"""Opens data sets: folders, YAML files, Hugging Face data sets, shards and the built-in scenes.

`layouts.py` finds the files. Classes, colours and the label map come from a `data.yaml`; without
one, from the layout of a known data set or from `labels`. There is no default for unknown classes
and no implicit shift of ids.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from setr.arguments.typed import checked
from setr.bands import Bands
from setr.data import scenes
from setr.data.configured import configured_files
from setr.data.data_yaml import HUB, SPLITS, Description, read_description
from setr.data.dataset import Dataset
from setr.data.hub_rows import open_hub
from setr.data.layouts import BESIDE, find_split
from setr.data.pairing import NoSplitError, SplitFiles
from setr.data.pairs import NamedPairs, Pair, Pairs
from setr.data.shards import Shards, is_shards
from setr.errors import DATA_CHECK_FAILED, DataError, UsageError, first_few
from setr.labels import Labels, known_labels, known_name
from setr.reading.made_folders import DRAWN
from setr.reading.pillow import Named, Source

GIVEN = "python:"
"""Prefix of `data.root` in the settings of a run whose data set is a Python object."""


class SceneDataset(Dataset):
    """The built-in data set: synthetic street scenes, drawn on access from a seed."""

    decoded = True

    @property
    def version(self) -> str:
        """A constant: a scene never changes."""
        return "drawn"

    def open_raw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask of one scene; the ids are training ids."""
        split, _, number = self.pairs[index].image.stem.rpartition("_")
        return scenes.draw(split, int(number))


@dataclass(frozen=True)
class ShardDataset(Dataset):
    """A split packed into tar or Parquet files (see `shards.py`).

    Attributes:
        shards: the opened split.
    """

    shards: Any = None

    def _part(self, indices: list[int]) -> Dataset:
        """Refused, since shards are read in sequence."""
        raise UsageError(
            f"{self.name}: shards are read in sequence, so that no part of a split can be chosen; "
            "pack fewer images, or give the folder that was packed"
        )

    @property
    def version(self) -> str:
        """Checksum of the index, which contains those of all files."""
        return str(self.shards.content)

    def image_name(self, index: int) -> str:
        """Path below the folder that was packed."""
        return str(self.shards.names[index])

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """Random order that reads a few shards at a time."""
        return self.shards.permutation(rng)

    def sources(self, index: int) -> tuple[Source, Source | None]:
        """Bytes of image and mask, named after the sample."""
        image, mask = self.shards.read(index)
        pair = self.pairs[index]
        return Named(image, str(pair.image)), Named(mask, str(pair.mask))


@checked
def open_dataset(
    path: str | os.PathLike,
    split: str,
    labels: Labels | str | None = None,
    bands: Bands | None = None,
) -> Dataset:
    """Open one split of a data set.

    Args:
        path: a folder, a YAML file, a folder or URL of shards (`setr shard`, s3://…),
            `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG` for a Hugging Face data set, or `scenes` for
            the built-in synthetic data, with 1000 images for training and a tenth of that in other
            splits (`scenes:COUNT` for another number).
        split: `train`, `val`, `test` or another split of the layout, or several joined with `+`.
        labels: classes, or the name of a known data set, if no data.yaml defines classes. With a
            name, ids are read in the encoding of the mask files found.
        bands: bands to read of the images, if data.yaml does not define them.

    Returns:
        A sequence of `Sample`s, decoded when indexed: `image` uint8 (H, W, C) and `mask` uint8
        (H, W) with training ids, 255 for ignored pixels.

    Raises:
        SetrError: no such path or split, no images, masks missing, or classes unknown.
    """
    if not all(part.strip() for part in split.split("+")):
        raise UsageError(f"split '{split}': give a name, or several joined with +")
    path = os.fspath(path)
    if not path:
        raise UsageError("data '': names no data set; give its folder, . for the current one")
    if path.partition(":")[0] == "scenes":
        count = _scene_count(path)
        count = count if split == "train" else max(count // 10, 2)
        pairs = tuple(Pair(Path(f"{split}_{i:05d}.png"), None) for i in range(count))
        return SceneDataset("scenes", split, scenes.LABELS, pairs)
    if path.startswith(GIVEN):
        raise UsageError(
            f"{path}: this data set is a Python object, not a file; pass it in Python, as "
            "setr.train(config, data=(train, val)) or setr.evaluate(model, data)"
        )
    if path.startswith(HUB):
        return open_hub(path, split, labels, {}, bands)
    if is_shards(path):
        return _open_shards(path, split, bands)
    described = read_description(Path(path))
    root, own_labels, bands = described.root, described.labels, described.bands or bands
    given = own_labels or labels
    if str(root).startswith(HUB):
        return open_hub(str(root), split, given, described.splits, bands)
    wanted = given if isinstance(given, str) else None
    try:
        parts = [f for part in split.split("+") for f in _split_files(described, part, wanted)]
    except DataError as error:
        raise DataError(_with_outlines(str(error), Path(path), described)) from None
    implied = {part.labels for part in parts}
    if len(implied) > 1:
        raise UsageError(f"{root}: the splits of '{split}' use different ids")
    chosen = own_labels if isinstance(own_labels, Labels) else _with_encoding(given, implied.pop())
    if chosen is None:
        raise UsageError(
            f"{path}: class names are unknown; write a data.yaml beside the images "
            "(`setr init-data DIR` does) or name a known data set (--data.labels in training, "
            "--labels elsewhere)"
        )
    notes = tuple(note for part in parts for note in part.notes)
    return Dataset(root.name, split, chosen, Pairs(parts), notes, bands=bands)


def usual_splits(path: str) -> tuple[str, ...]:
    """The splits to look for in a data set: those of validation if a YAML file has folds."""
    local = path.partition(":")[0] not in ("scenes", "hf") and not is_shards(path)
    described = read_description(Path(path)) if local else Description(Path())
    named = [fold for fold in described.folds if fold.startswith("val")]
    return (*named, "test") if named else SPLITS


def _split_files(described: Description, split: str, wanted: str | None) -> list[SplitFiles]:
    """Files of a split, from the description or from the folder's layout."""
    root, places = described.root, described.splits.get(split)
    if places is None and (folds := described.folds):
        raise NoSplitError(
            f"{root}: no split '{split}', but folds; name one of {first_few(folds, 4)}",
            code=DATA_CHECK_FAILED,
        )
    if places is None:
        return [find_split(root, split, wanted)]
    return [configured_files(root, place, described.masks_dir) for place in places]


def _with_outlines(text: str, path: Path, described: Description) -> str:
    """An error's text, and what to do if another program's file is of outlines without masks."""
    if not described.has_names or described.masks_dir or path.name == BESIDE:
        return text
    folder, own = path if path.is_dir() else path.parent, described.root
    drawn = [own / BESIDE]
    if path.resolve() not in (own, own / "data.yaml") and (own / DRAWN).is_dir():
        drawn.append(own / "data.yaml")
    if there := next((file for file in drawn if file.is_file()), None):
        return f"{text}; `setr init-data` has drawn masks: give {there}"
    is_there = folder.resolve() == own
    given = f"`setr init-data {shlex.quote(str(folder if is_there else path))}`"
    if "init-data" in text:
        return text.replace("`setr init-data DIR`", given)
    return f"{text}; if labels are polygons: {given}"


def _scene_count(path: str) -> int:
    number = path.partition(":")[2] or "1000"
    if not number.isdecimal() or not int(number):
        raise UsageError(f"{path}: give a number of scenes, 1 or more, as scenes:500")
    return int(number)


def _with_encoding(given: Labels | str | None, implied: str | None) -> Labels | None:
    """The given classes, with the encoding of ids that the layout of a known data set implies.

    So a model with the classes of a known data set can be tested on any encoding of it. If its
    classes are mere numbers, as of a checkpoint without names, but those of the layout have names,
    the layout's are used, so that the mismatch is reported.
    """
    name = known_name(given) if isinstance(given, Labels) else given or implied
    base, _, encoding = (implied or "").partition(":")
    related = name is not None and base and name.startswith(base)  # such as pascal_context_59
    if isinstance(given, Labels) and not related:
        known = known_labels(implied) if implied and not given.colour_map else given
        return known if given.is_numbered and not known.is_numbered else given
    if name and related and encoding and ":" not in name:
        name = f"{name}:{encoding}"
    return known_labels(name) if name else None


def _open_shards(path: str, split: str, bands: Bands | None) -> Dataset:
    """Open shards, which contain their classes and bands."""
    shards = Shards(path, split)
    name = shards.name
    pairs = NamedPairs(Path(name, split), shards.names, ":mask")
    bands = shards.bands or bands
    return ShardDataset(name, split, shards.labels, pairs, (), shards, bands=bands)
