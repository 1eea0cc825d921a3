"""Samples from the user's own code as a data set: a torch `Dataset`, a list, anything indexed."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from setr.bands import Bands
from setr.data.dataset import Dataset, Sample, require_size
from setr.data.hub_rows import IMAGE_KEYS, MASK_KEYS
from setr.data.pairs import Pair
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.labels import IGNORE, Labels, known_labels
from setr.reading.arrays import as_image
from setr.reading.masks import as_mask

_ONE_AT_A_TIME = threading.RLock()
"""A user's code need not bear several threads. Not of a data set, which goes to other processes and
may hold another one."""


def wrap_dataset(
    samples: Any,
    labels: Labels | Sequence[str] | Mapping[int, str] | str,
    split: str,
    *,
    name: str = "own",
    version: str | None = None,
    bands: Bands | None = None,
) -> WrappedDataset:
    """A split for `setr.train`, `setr.evaluate` and `setr.doctor.check` out of samples in Python.

    Samples are read whole before training, which checks them, and then again in every epoch. The
    crops, flips and colours of a recipe are applied to what they hold, so leave such transforms out
    of your own. An interrupted run continues bit for bit if an index always gives the same sample.

    Args:
        samples: has a length and gives, for 0, 1, …, a pair of image and mask, or a mapping with
            `image` or `pixel_values` and one of `annotation`, `mask`, `label`, `labels`,
            `semantic_segmentation`, `segmentation_mask`: a `torch.utils.data.Dataset` (also
            `Subset` and `ConcatDataset` of one, or of setr's own data sets), a data set of Hugging
            Face, a list. An image is what `Predictor.predict` takes: a Pillow image, uint8
            (H, W, 3), a tensor (3, H, W), a path, …; a mask is a Pillow image, a path, or whole
            numbers (H, W).
        labels: class names in the order of their ids from 0; a mapping of other ids to names, or to
            `ignore`; the name of a known data set; or `Labels`, for colours. 255 is ignored unless
            a mapping names it.
        split: `train`, `val` or another name.
        name: of the data set, in logs and model cards.
        version: changes when the content does. With it, checks and stored features of earlier runs
            are used again and a run does not continue on other content; without, each run looks
            anew and compares the classes and the number of samples only. What a `Subset` chooses
            counts as content.
        bands: of images with other channels than red, green and blue, as a data.yaml names them;
            setr's own data sets bring theirs.

    Raises:
        SetrError: no length or index, no samples, classes that cannot be, or other classes or bands
            than those of setr's own data sets among the samples.
    """
    if isinstance(samples, Mapping) and 0 not in samples:
        raise SetrError(
            f"{type(samples).__name__} of {', '.join(map(str, samples))}: give one of its splits, "
            "or a list(…) of the samples",
            code=USAGE,
        )
    if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise _no_index(samples)
    if not len(samples):
        raise SetrError(f"split '{split}' of {name} has no samples", code=DATA_CHECK_FAILED)
    labels = _labels(labels)
    try:
        mapped = isinstance(samples[0], Sample)
    except NotImplementedError:  # torch's IterableDataset
        raise _no_index(samples) from None
    if mapped:
        bands = _bands_of_own(samples, labels, bands)
        labels = Labels(labels.classes, labels.colours)
    return WrappedDataset(
        name,
        split,
        labels,
        _Numbered(name, split, len(samples)),
        samples=samples,
        content=_with_choice(version, samples),
        mapped=mapped,
        bands=bands,
    )


def _no_index(samples: Any) -> SetrError:
    return SetrError(
        f"{type(samples).__name__}: has no length or no index; give a torch Dataset with "
        "__len__ and __getitem__, or a list(…) of the samples",
        code=USAGE,
    )


def _labels(given: Labels | Sequence[str] | Mapping[int, str] | str) -> Labels:
    if isinstance(given, Labels):
        return given
    if isinstance(given, str):
        return known_labels(given)
    if not isinstance(given, Mapping | Iterable):
        raise SetrError(f"labels {given!r}: give the names of the classes", code=USAGE)
    if not isinstance(given, Mapping):
        return Labels(tuple(map(str, given)))
    try:
        by_id = {int(str(key)): name for key, name in given.items()}  # JSON's are text
    except (TypeError, ValueError):
        raise SetrError(
            f"labels {dict(given)!r:.80}: give names by id, as {{0: 'road', 7: 'car'}}", code=USAGE
        ) from None
    names = dict.fromkeys(name for _, name in sorted(by_id.items()) if name != "ignore")
    return Labels.from_dict({"classes": list(names), "label_map": {IGNORE: "ignore", **by_id}})


def _bands_of_own(samples: Any, labels: Labels, bands: Bands | None) -> Bands | None:
    """The bands of setr's own data sets among samples, whose classes must be those given."""
    all_own = list(_own(samples))
    for own in all_own:
        bands = bands or all_own[0].bands
        if own.bands != bands:
            given, found = (str(b) if b else "red, green and blue" for b in (bands, own.bands))
            raise SetrError(f"{given}: the samples of {own.name} have {found}", code=USAGE)
        if own.labels.classes != labels.classes:
            raise SetrError(
                f"classes {', '.join(labels.classes)}: the samples of {own.name} have "
                f"{', '.join(own.labels.classes)}; give its labels",
                code=USAGE,
            )
    return bands


def _own(samples: Any) -> Iterator[Dataset]:
    """Data sets of setr itself, also in torch's `Subset` and `ConcatDataset`."""
    if isinstance(samples, Dataset):
        yield samples
    for inner in _within(samples):
        yield from _own(inner)


def _within(samples: Any) -> list[Any]:
    """What torch's `Subset` or `ConcatDataset` is made of."""
    if isinstance(samples, Subset):
        return [samples.dataset]
    return samples.datasets if isinstance(samples, ConcatDataset) else []


def _with_choice(version: str | None, samples: Any) -> str | None:
    """A version that tells folds of the same data apart: with what each `Subset` chooses."""
    if version is None:
        return None
    if isinstance(samples, Subset):
        version += f" {zlib.crc32(np.asarray(samples.indices, np.int64).tobytes()):08x}"
    elif isinstance(samples, ConcatDataset):
        version += f" {len(samples.datasets)}"
    for inner in _within(samples):
        version = _with_choice(version, inner)
    return version


@dataclass(frozen=True)
class WrappedDataset(Dataset):
    """A split whose samples the user's code hands out; made by `wrap_dataset`.

    Attributes:
        samples: what hands them out.
        content: its version.
        mapped: the samples are of setr's own data sets, whose masks hold training ids.
    """

    decoded = True

    samples: Any = field(kw_only=True, repr=False)
    content: str | None = field(kw_only=True)
    mapped: bool = field(default=False, kw_only=True)

    @property
    def version(self) -> str | None:
        """As the user names it; without a name nothing is known of another run's samples."""
        return self.content

    def pixels(self, index: int) -> np.ndarray:
        """The image of one sample."""
        return self.open_raw(index)[0]

    def open_raw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample as uint8 (H, W, C) and its mask's ids or colours.

        Raises:
            SetrError: no pair, or not of an image and a mask of one size.
        """
        place = self.pairs[index].image
        with _ONE_AT_A_TIME:
            given = self.samples[index]
        if isinstance(given, Sample) != self.mapped:
            raise SetrError(
                f"{place}: some samples are of setr's own data sets, others are not; wrap these "
                "first, as ConcatDataset([own, setr.wrap_dataset(others, …)])"
            )
        try:
            image, mask = _parts(given)
            pixels = as_image(image, bands=self.bands)
            raw = as_mask(mask, rgb=self.labels.colour_map is not None)
        except SetrError as error:
            raise SetrError(f"{place}: {error}") from None
        require_size(place, raw, pixels.shape[:2])
        return pixels, raw


def _parts(given: Any) -> tuple[Any, Any]:
    if isinstance(given, Mapping):
        image, mask = (next((key for key in keys if key in given), None)
                       for keys in (IMAGE_KEYS, MASK_KEYS))  # fmt: skip
        if image is not None and mask is not None:
            return given[image], given[mask]
        have = ", ".join(map(str, given))
        raise SetrError(f"has {have or 'nothing'}; give 'image' and one of {', '.join(MASK_KEYS)}")
    if isinstance(given, tuple | list) and len(given) == 2:
        return given[0], given[1]
    count = f" of {len(given)}" if isinstance(given, tuple | list) else ""
    raise SetrError(f"is a {type(given).__name__}{count}; give a pair, (image, mask)")


class _Numbered(Sequence[Pair]):
    """Names for samples that have none: NAME/SPLIT/0000012."""

    def __init__(self, name: str, split: str, length: int) -> None:
        self.name, self.split, self.length = name, split, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.length)))
        number = range(self.length)[index]
        place = Path(self.name, self.split, f"{number:07d}")
        return Pair(place, place)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(self.length))
