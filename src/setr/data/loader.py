"""Data loading: augmented training batches, and whole images.

The augmentation of a sample is seeded by (seed, epoch, index), so batches do not depend on the
number of workers and processes; nor does their order (`order.py`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from setr.data.dataset import Dataset
from setr.data.order import WHOLE, Extra, Position, Share, training_order
from setr.data.own_augmentation import OwnAugmentation, require_sendable
from setr.data.workers import PREFETCH_FACTOR, Loader
from setr.errors import SetrError
from setr.transforms import Augmentation

SHARED_MEMORY = Path("/dev/shm")
"""Where workers pass batches to the training process; small in containers (Docker: 64 MB)."""

Loaded = tuple[np.ndarray, np.ndarray] | SetrError


def located(datasets: Sequence[Dataset], index: int) -> tuple[Dataset, int]:
    """The data set of a sample, and its index there; the first ones' indices come first."""
    for dataset in datasets:
        if index < len(dataset):
            return dataset, index
        index -= len(dataset)
    raise IndexError(index)


class _AugmentedSamples(TorchDataset):
    def __init__(
        self,
        datasets: Sequence[Dataset],
        augment: Augmentation,
        seed: int,
        own: OwnAugmentation | None,
    ) -> None:
        self.datasets, self.augment, self.seed, self.own = datasets, augment, seed, own
        # of further images, which have no classes; only crops without any data are drawn anew
        self.further = replace(augment, max_class_share=1.0, rare_crops=0.0)

    def __getitem__(self, position: Position) -> Loaded:
        epoch, index = position
        rng = np.random.default_rng((self.seed, epoch, index))
        dataset, index = located(self.datasets, index)
        try:
            augment = self.augment if dataset is self.datasets[0] else self.further
            image, mask = augment(*dataset.open(index), rng)
            if self.own is None:
                return image, mask
            return self.own(image, mask, rng, str(dataset.pairs[index].image))
        except SetrError as error:
            return error


class _WholeImages(TorchDataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Loaded:
        try:
            return self.dataset.load(index)
        except SetrError as error:
            return error


def stack(samples: list[Loaded]) -> tuple[np.ndarray, np.ndarray] | SetrError:
    """Images uint8 (B, H, W, C) and masks uint8 (B, H, W) of equal size, or the first error."""
    arrays = []
    for sample in samples:
        if isinstance(sample, SetrError):
            return sample
        arrays.append(sample)
    images, masks = zip(*arrays, strict=True)
    return np.stack(images), np.stack(masks)


def _stack_shared(samples: list[Loaded]) -> tuple[Tensor, Tensor] | SetrError:
    """As `stack`, as tensors: workers pass tensors in shared memory, and arrays through a pipe."""
    batch = stack(samples)
    return batch if isinstance(batch, SetrError) else _tensors(batch)


def _tensors(batch: Sequence[np.ndarray | Tensor]) -> tuple[Tensor, Tensor]:
    images, masks = map(torch.as_tensor, batch)
    return images, masks


def _fits_shared_memory(batches: int, batch_bytes: int) -> bool:
    """Whether the batches fit into half of the free shared memory.

    If there is no room, PyTorch loses the batch and the training process waits for it forever.
    """
    if not SHARED_MEMORY.is_dir():
        return True  # not limited
    return 2 * batches * batch_bytes <= shutil.disk_usage(SHARED_MEMORY).free


def training_batches(
    dataset: Dataset,
    augment: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    share: Share = WHOLE,
    pinned: bool = False,
    own: OwnAugmentation | None = None,
    extra: Extra | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of steps start .. stop-1: images uint8 (B, H, W, C), masks uint8 (B, H, W).

    `batch_size` counts the images of all processes; `share` selects those of this process. `pinned`
    puts batches into pinned memory. Workers pass them in shared memory if there is enough of it,
    else through a pipe, which is slower. `own` is applied to the augmented samples. `extra` takes
    the place of some images of the split.
    """
    if own is not None and workers:
        require_sendable(own.augment)
    batch_bytes = len(share.of(batch_size)) * math.prod(augment.crop_size) * (len(augment.fill) + 1)
    use_shared_memory = _fits_shared_memory(PREFETCH_FACTOR * workers + 1, batch_bytes)
    order = training_order(
        dataset, batch_size, seed=seed, start=start, stop=stop, share=share, extra=extra
    )
    datasets = (dataset, extra.dataset) if extra else (dataset,)
    loader = Loader(
        _AugmentedSamples(datasets, augment, seed, own),
        workers=workers,
        batch_sampler=order,
        collate_fn=_stack_shared if use_shared_memory else stack,
        pin_memory=pinned,
    )
    return _raise_errors(loader)


def _raise_errors(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches; errors that workers return are raised here, without the worker's traceback."""
    for batch in loader:
        if isinstance(batch, SetrError):
            raise batch
        yield _tensors(batch)


def whole_images(
    dataset: Dataset, workers: int, indices: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor] | SetrError]:
    """Samples of a split one by one in their original size, or the error of reading them.

    Workers send them through a pipe, because large images may not fit into shared memory.
    """
    loader = Loader(
        _WholeImages(dataset),
        workers=min(workers, len(indices)),
        batch_size=1,
        sampler=indices,
        collate_fn=stack,
    )
    for sample in loader:
        yield sample if isinstance(sample, SetrError) else _tensors(sample)
