"""Data sets from Python objects: a torch `Dataset`, a list, anything with length and index."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from setr.arguments.typed import typed
from setr.bands import Bands
from setr.data.class_tables import labels_by_id
from setr.data.dataset import Dataset, Sample, require_size
from setr.data.hub_rows import IMAGE_KEYS, MASK_KEYS
from setr.data.pairs import NamedPairs, Numbers
from setr.errors import DataError, SetrError, UsageError
from setr.labels import Labels, known_labels
from setr.reading.arrays import as_image
from setr.reading.masks import as_mask

_SAMPLES_LOCK = threading.RLock()
"""Users' code need not be thread-safe. Global, because data sets are pickled and may be nested."""


def wrap_dataset(
    samples: Any,
    labels: Labels | Sequence[str] | Mapping[int, str] | str,
    split: str,
    *,
    name: str = "own",
    version: str | None = None,
    bands: Bands | None = None,
) -> WrappedDataset:
    """Make a split for `setr.train`, `setr.evaluate` and `setr.doctor.check` from Python objects.

    All samples are read once before training to check them, and again in every epoch. The recipe's
    crops, flips and colour augmentation are applied to them, and then the `augment` of
    `setr.train`, so leave these out of the samples. An interrupted run resumes bit for bit if an
    index always returns the same sample.

    Args:
        samples: an object with `__len__` and `__getitem__`, such as a `torch.utils.data.Dataset`
            (also `Subset` and `ConcatDataset` of one, or of setr's own data sets), a Hugging Face
            data set, a pandas table with a row for each sample, or a list. A sample is a pair of
            image and mask, or a mapping with `image` or `pixel_values` and one of `annotation`,
            `mask`, `label`, `labels`, `semantic_segmentation`, `segmentation_mask`. Images are
            anything that `Predictor.predict` takes: a Pillow image, uint8 (H, W, 3), a tensor
            (3, H, W), a path, …; masks are a Pillow image, a path, or integers (H, W).
        labels: class names in the order of their ids from 0; a mapping from ids to names or
            `ignore`; the name of a known data set; or `Labels`, for colours. 255 is ignored unless
            a mapping contains it.
        split: `train`, `val` or another name.
        name: of the data set, in logs and model cards.
        version: any text that changes with the content. With it, checks and cached features of
            earlier runs are reused, and a run refuses to resume on other content. Without it, data
            are checked in each run, and resuming compares only the classes and the number of
            samples. The choice of a `Subset` is added to the version.
        bands: of images with other channels than red, green and blue, as in data.yaml; setr's own
            data sets have their own.

    Raises:
        SetrError: no length or index, no samples, invalid classes, or classes or bands that differ
            from those of setr's own data sets among the samples.
    """
    if hasattr(samples, "iloc") and hasattr(samples, "columns"):  # pandas; its index is columns
        samples = samples.to_dict("records")
    if isinstance(samples, Mapping) and 0 not in samples:
        raise UsageError(
            f"{type(samples).__name__} of {', '.join(map(str, samples))}: give one of its splits, "
            "or a list(…) of the samples"
        )
    if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise _no_index(samples)
    split, bands = typed(str, split, "split"), typed(Bands | None, bands, "bands")
    if not len(samples):
        raise DataError(f"split '{split}' of {name} has no samples")
    labels = _labels(labels)
    try:
        mapped = isinstance(samples[0], Sample)
    except NotImplementedError:  # torch's IterableDataset
        raise _no_index(samples) from None
    if mapped:
        bands = _common_bands(samples, labels, bands)
        labels = Labels(labels.classes, labels.colours)
    return WrappedDataset(
        name,
        split,
        labels,
        NamedPairs(Path(name, split), Numbers(len(samples))),
        samples=samples,
        content=_content_version(version, samples),
        mapped=mapped,
        bands=bands,
    )


def _no_index(samples: Any) -> SetrError:
    return UsageError(
        f"{type(samples).__name__}: has no length or no index; give a torch Dataset with "
        "__len__ and __getitem__, or a list(…) of the samples"
    )


def _labels(given: Labels | Sequence[str] | Mapping[int, str] | str) -> Labels:
    if isinstance(given, Labels):
        return given
    if isinstance(given, str):
        return known_labels(given)
    if not isinstance(given, Mapping | Iterable):
        raise UsageError(f"labels {given!r}: give the names of the classes")
    if not isinstance(given, Mapping):
        listed = tuple(map(str, given))
        if "ignore" in listed:
            raise UsageError(
                "labels list 'ignore', which cannot be a class; give names by id, as "
                f"{{{listed.index('ignore')}: 'ignore', …}}"
            )
        return Labels(listed)
    return labels_by_id(given)


def _common_bands(samples: Any, labels: Labels, bands: Bands | None) -> Bands | None:
    """The bands of setr's own data sets among samples; their classes must be those of `labels`."""
    datasets = list(_own_datasets(samples))
    for dataset in datasets:
        bands = bands or datasets[0].bands
        if dataset.bands != bands:
            given, found = (str(b) if b else "red, green and blue" for b in (bands, dataset.bands))
            raise UsageError(f"{given}: the samples of {dataset.name} have {found}")
        if dataset.labels.classes != labels.classes:
            raise UsageError(
                f"classes {', '.join(labels.classes)}: the samples of {dataset.name} have "
                f"{', '.join(dataset.labels.classes)}; give its labels"
            )
    return bands


def _own_datasets(samples: Any) -> Iterator[Dataset]:
    """Data sets of setr itself, also inside torch's `Subset` and `ConcatDataset`."""
    if isinstance(samples, Dataset):
        yield samples
    for inner in _inner_datasets(samples):
        yield from _own_datasets(inner)


def _inner_datasets(samples: Any) -> list[Any]:
    """The data sets inside torch's `Subset` or `ConcatDataset`; empty for others."""
    if isinstance(samples, Subset):
        return [samples.dataset]
    return samples.datasets if isinstance(samples, ConcatDataset) else []


def _content_version(version: str | None, samples: Any) -> str | None:
    """The version extended by the indices of each `Subset`, to distinguish folds of the data."""
    if version is None:
        return None
    if isinstance(samples, Subset):
        version += f" {zlib.crc32(np.asarray(samples.indices, np.int64).tobytes()):08x}"
    elif isinstance(samples, ConcatDataset):
        version += f" {len(samples.datasets)}"
    for inner in _inner_datasets(samples):
        version = _content_version(version, inner)
    return version


@dataclass(frozen=True)
class WrappedDataset(Dataset):
    """A split with samples from the user's code; made by `wrap_dataset`.

    Attributes:
        samples: the wrapped object.
        content: version of its content.
        mapped: the samples are of setr's own data sets, whose masks contain training ids.
    """

    decoded = True

    samples: Any = field(kw_only=True, repr=False)
    content: str | None = field(kw_only=True)
    mapped: bool = field(default=False, kw_only=True)

    @property
    def version(self) -> str | None:
        """Version of the content; None if the user gave none."""
        return self.content

    def part(self, indices: Sequence[int]) -> Dataset:
        """The samples with these indices."""
        samples: Subset = Subset(self.samples, list(indices))
        return replace(
            self,
            pairs=NamedPairs(Path(self.name, self.split), Numbers(len(indices))),
            samples=samples,
            content=_content_version(self.content, samples),
        )

    def open_raw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample as uint8 (H, W, C) and its mask's ids or colours.

        Raises:
            SetrError: not a pair of image and mask, or of different sizes.
        """
        name = self.pairs[index].image
        with _SAMPLES_LOCK:
            given = self.samples[index]
        if isinstance(given, Sample) != self.mapped:
            raise SetrError(
                f"{name}: some samples are of setr's own data sets, others are not; wrap these "
                "first, as ConcatDataset([own, setr.wrap_dataset(others, …)])"
            )
        try:
            image, mask = _image_and_mask(given)
            pixels = as_image(image, bands=self.bands)
            raw = as_mask(mask, rgb=self.labels.colour_map is not None)
        except SetrError as error:
            raise SetrError(f"{name}: {error}") from None
        require_size(name, raw, pixels.shape[:2])
        return pixels, raw


def _image_and_mask(given: Any) -> tuple[Any, Any]:
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
