"""Data sets -> samples: a folder, a small YAML file or a Hugging Face id, with the map of its ids.

`layouts.py` finds the files. A `data.yaml` beside or above them names classes, colours and the
label map; without one, the layout of a known data set or `labels` does. There is no default for
unknown classes and no implicit shift of ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from setr import scenes
from setr.bands import BandImage, Bands, open_pixels
from setr.data_yaml import HUB, Description, read_description
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.images import Named, Rows, Source
from setr.labels import Labels, known_labels, known_name
from setr.layouts import find_split
from setr.masks import read_mask
from setr.pairing import Found, NoSplitError, configured_files
from setr.pairs import Pair, Pairs
from setr.shards import Shards, is_shards

GIVEN = "python:"
"""Prefix of `data.root` in the settings of a run whose data came from Python."""
Pixels = np.ndarray | Rows | BandImage
"""An image (H, W, C): uint8 pixels, or a file of which they are decoded when they are indexed."""

MASK_KEYS = ("annotation", "mask", "label", "labels", "semantic_segmentation", "segmentation_mask")


class Sample(NamedTuple):
    """One decoded example: image uint8 (H, W, C), mask uint8 training ids (H, W).

    C are red, green and blue, or the data set's bands.
    """

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """One split: file pairs and the classes their ids mean.

    Attributes:
        name: of the data set.
        split: of it.
        labels: classes and the map of ids.
        pairs: the files.
        notes: what was odd about the files, but no error.
        bands: what is read of an image; None for RGB.
    """

    name: str
    split: str
    labels: Labels
    pairs: Sequence[Pair]
    notes: tuple[str, ...] = ()
    bands: Bands | None = field(default=None, kw_only=True)

    decoded: ClassVar[bool] = False
    """Whether samples come as pixels, so that there are no files to look at."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """One decoded pair, as `load`; so loops, `Subset` and `ConcatDataset` of torch work."""
        return self.load(range(len(self))[index])

    @property
    def version(self) -> str | None:
        """Changes with the content; None where the pairs are files, whose times tell."""
        return None

    @property
    def channels(self) -> int:
        """C of the images."""
        return 3 if self.bands is None else len(self.bands.numbers)

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """An order of the samples for one epoch."""
        return rng.permutation(len(self))

    def sources(self, index: int) -> tuple[Source, Source | None]:
        """What image and mask are decoded from: paths, or the bytes of files."""
        pair = self.pairs[index]
        return pair.image, pair.mask

    def load(self, index: int) -> Sample:
        """Decode one pair.

        Raises:
            SetrError: unreadable file, sizes that differ, ids outside the classes; names the file.
        """
        rows, mask = self.open(index)
        return Sample(rows[:], mask)

    def pixels(self, index: int) -> Pixels:
        """An image, of which only what is asked for is decoded.

        Raises:
            SetrError: as `load`, here or when rows are asked for.
        """
        return open_pixels(self.sources(index)[0], self.bands)

    def open(self, index: int) -> tuple[Pixels, np.ndarray]:
        """One pair: an image as `pixels` gives it, and its mask in training ids.

        Raises:
            SetrError: as `load`, here or when rows are asked for.
        """
        rows, raw = self.open_raw(index)
        return rows, self.to_train_ids(index, raw)

    def open_raw(self, index: int) -> tuple[Pixels, np.ndarray]:
        """The same with the mask as it is stored: ids (H, W) or colours (H, W, 3)."""
        image_source, mask_source = self.sources(index)
        rows = open_pixels(image_source, self.bands)
        return rows, self.raw_mask(index, mask_source, rows.shape[:2])

    def raw_mask(self, index: int, source: Source | None, size: tuple[int, ...]) -> np.ndarray:
        """Ids (H, W) or colours (H, W, 3) as a mask file holds them, of its image's (H, W)."""
        pair = self.pairs[index]
        if source is None:
            raise SetrError(f"{pair.image}: has no mask", code=DATA_CHECK_FAILED)
        raw = read_mask(source, rgb=self.labels.colour_map is not None)
        require_size(pair.mask, raw, size)
        return raw

    def to_train_ids(self, index: int, raw: np.ndarray) -> np.ndarray:
        """Training ids uint8 (H, W) of a raw mask; an error names the file."""
        try:
            return self.labels.to_train_ids(raw)
        except SetrError as error:
            raise SetrError(f"{self.pairs[index].mask}: {error}") from None


def require_size(name: object, mask: np.ndarray, size: tuple[int, ...]) -> None:
    """Refuse a mask, known as `name`, of another height and width than its image's `size`."""
    if mask.shape[:2] == tuple(size):
        return
    turned = mask.shape[1::-1] == tuple(size)
    hint = "rotated? re-export it upright" if turned else "masks are never resized silently"
    raise SetrError(
        f"{name}: mask is {mask.shape[1]}x{mask.shape[0]} but its image {size[1]}x{size[0]}; {hint}"
    )


class SceneDataset(Dataset):
    """The embedded data set: drawn street scenes, generated from a seed, never on disk."""

    decoded = True

    @property
    def version(self) -> str:
        """The same scenes for ever."""
        return "drawn"

    def pixels(self, index: int) -> np.ndarray:
        """Draw scene number `index` of this split."""
        return self.open_raw(index)[0]

    def open_raw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw it with its mask, whose ids are the training ids."""
        return scenes.draw(self.split, index)


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


@dataclass(frozen=True)
class ShardDataset(Dataset):
    """A split packed into tar files (see `shards.py`).

    Attributes:
        shards: the opened split.
    """

    shards: Any = None

    @property
    def version(self) -> str:
        """Checksum of the index, which holds those of all files."""
        return str(self.shards.content)

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """An order that reads some shards at a time."""
        order: np.ndarray = self.shards.permutation(rng)
        return order

    def sources(self, index: int) -> tuple[Source, Source | None]:
        """Bytes of image and mask, named after the sample, which has no path."""
        image, mask = self.shards.read(index)
        pair = self.pairs[index]
        return Named(image, str(pair.image)), Named(mask, str(pair.mask))


def open_dataset(
    path: str, split: str, labels: Labels | str | None = None, bands: Bands | None = None
) -> Dataset:
    """Open one split of a data set.

    Args:
        path: a folder, a YAML file, a folder or address of shards (`setr shard`, s3://…),
            `hf:OWNER/NAME` for a Hugging Face data set, or `scenes` for the embedded drawn data,
            1000 for training and a tenth of that for other splits (`scenes:COUNT` for another
            number).
        split: `train`, `val`, `test` or another the layout has, or several joined with `+`.
        labels: classes, or the name of a known data set, to use where the data has no data.yaml
            that names its own. A name takes the encoding of the mask files found.
        bands: what to read of the images where no data.yaml names bands, as a model has them.

    Raises:
        SetrError: no such path, no such split, no pairs, masks missing, or classes unknown.
    """
    if path.partition(":")[0] == "scenes":
        count = _scene_count(path)
        count = count if split == "train" else max(count // 10, 2)
        pairs = tuple(Pair(Path(f"{split}_{i:05d}.png"), None) for i in range(count))
        return SceneDataset("scenes", split, scenes.LABELS, pairs)
    if path.startswith(GIVEN):
        raise SetrError(
            f"{path}: this data came from Python and is in no file; give it there, as "
            "setr.train(config, data=(train, val)) or setr.evaluate(model, data)",
            code=USAGE,
        )
    if path.startswith(HUB):
        return _open_hub(path, split, labels, {}, bands)
    if is_shards(path):
        return _open_shards(path, split, bands)
    described = read_description(Path(path))
    root, own, bands = described.root, described.labels, described.bands or bands
    given = own or labels
    if str(root).startswith(HUB):
        return _open_hub(str(root), split, given, described.splits, bands)
    wanted = given if isinstance(given, str) else None
    parts = [found for part in split.split("+") for found in _split_files(described, part, wanted)]
    implied = {part.labels for part in parts}
    if len(implied) > 1:
        raise SetrError(f"{root}: the splits of '{split}' code their ids differently", code=USAGE)
    chosen = own if isinstance(own, Labels) else _with_encoding(given, implied.pop())
    if chosen is None:
        raise SetrError(
            f"{path}: class names are unknown; write a data.yaml beside the images "
            "(`setr init-data DIR` does) or name a known data set with --data.labels",
            code=USAGE,
        )
    notes = tuple(note for part in parts for note in part.notes)
    return Dataset(root.name, split, chosen, Pairs(parts), notes, bands=bands)


def _split_files(described: Description, split: str, wanted: str | None) -> list[Found]:
    """What the description names, or else what the folder's layout has."""
    root, places = described.root, described.splits.get(split)
    if places is None:
        return [find_split(root, split, wanted)]
    return [configured_files(root, root / place, described.masks_dir) for place in places]


def _scene_count(path: str) -> int:
    number = path.partition(":")[2] or "1000"
    if not number.isdecimal() or not int(number):
        raise SetrError(f"{path}: give a number of scenes, 1 or more, as scenes:500", code=USAGE)
    return int(number)


def _with_encoding(given: Labels | str | None, implied: str | None) -> Labels | None:
    """The classes that were asked for, with the ids the files of a known layout have.

    A model that carries classes of a known data set is tested on any encoding of it.
    """
    name = known_name(given) if isinstance(given, Labels) else given or implied
    base, _, encoding = (implied or "").partition(":")
    related = name is not None and base and name.startswith(base)  # as pascal_context_59 is
    if isinstance(given, Labels) and not related:
        return given
    if name and related and encoding and ":" not in name:
        name = f"{name}:{encoding}"
    return known_labels(name) if name else None


def _open_shards(path: str, split: str, bands: Bands | None) -> Dataset:
    """Shards carry their classes and bands with them."""
    shards = Shards(path, split)
    name, labels = shards.description["name"], Labels.from_dict(shards.labels)
    pairs = tuple(Pair(Path(name, split, n), Path(name, split, f"{n}:mask")) for n in shards.names)
    bands = Bands.of(shards.description) or bands
    return ShardDataset(name, split, labels, pairs, (), shards, bands=bands)


def _open_hub(
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
            f"{path}: name the data set of its classes with --data.labels, or give a YAML file "
            f"with 'path: {path}' and 'classes:' as the data",
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
