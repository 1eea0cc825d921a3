"""Data loading: training batches in an order that depends on (seed, step) only, and whole images.

The permutation of an epoch is seeded by (seed, epoch), the position in it follows from the step,
and the augmentation of a sample is seeded by (seed, epoch, index). There is no other state, so a
resumed run gets the batches of an uninterrupted one, with any number of workers and processes.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from setr.data.dataset import Dataset
from setr.data.own_augmentation import OwnAugmentation, require_sendable
from setr.errors import USAGE, SetrError, first_line
from setr.processes.quota import cpus
from setr.transforms import Augmentation

LINGER = 10.0
"""Seconds for which a worker continues after SIGTERM."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

MAX_WORKERS = 8
SHARED_MEMORY = Path("/dev/shm")
"""Where workers pass batches to the training process; small in containers (Docker: 64 MB)."""
PREFETCH_FACTOR = 2
"""Batches that each worker loads in advance."""

Loaded = tuple[np.ndarray, np.ndarray] | SetrError
Position = tuple[int, int]  # (epoch, index)
Permute = Callable[[np.random.Generator], np.ndarray]


class Share(NamedTuple):
    """The part of a global batch that one process computes.

    The batch is split into micro-batches and each micro-batch among the processes, so a micro-batch
    (and synchronised batch norm) has the same images for any number of processes.

    Attributes:
        rank: rank of the process.
        world: number of processes.
        accumulate: micro-batches per batch.
    """

    rank: int
    world: int
    accumulate: int

    def of(self, batch_size: int) -> np.ndarray:
        """Positions in the batch, in ascending order."""
        positions = np.arange(batch_size).reshape(self.accumulate, self.world, -1)
        return positions[:, self.rank].ravel()


class BatchOrder:
    """Batch sampler that yields the (epoch, index) pairs of each step's batch.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch; a batch may span two epochs.
        seed: seed of the order.
        start: first step.
        stop: step after the last.
        share: part of every batch to yield; all of it by default.
        permute: returns the order of an epoch; a uniform permutation by default.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        share: Share | None = None,
        permute: Permute | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop = start, stop
        self.share = share or Share(0, 1, 1)
        self.permute: Permute = permute or (lambda rng: rng.permutation(length))

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Position]]:
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            batch = []
            for position in step * self.batch_size + self.share.of(self.batch_size):
                if position // self.length != epoch:
                    epoch = int(position // self.length)
                    order = self.permute(np.random.default_rng((self.seed, epoch)))
                batch.append((epoch, int(order[position % self.length])))
            yield batch


class _AugmentedSamples(TorchDataset):
    def __init__(
        self, dataset: Dataset, augment: Augmentation, seed: int, own: OwnAugmentation | None
    ) -> None:
        self.dataset, self.augment, self.seed, self.own = dataset, augment, seed, own

    def __getitem__(self, position: Position) -> Loaded:
        epoch, index = position
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            image, mask = self.augment(*self.dataset.open(index), rng)
            if self.own is None:
                return image, mask
            return self.own(image, mask, rng, str(self.dataset.pairs[index].image))
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


class _Loader(DataLoader):
    """A loader without PyTorch's warning about the number of workers."""

    def check_worker_number_rationality(self) -> None:
        """Do not warn."""


def _raise_errors(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches; errors that workers return are raised here, without the worker's traceback."""
    for batch in _start(loader):
        if isinstance(batch, SetrError):
            raise batch
        yield _tensors(batch)


def _start(loader: DataLoader) -> Iterator[Any]:
    """Start the workers with SIGINT and SIGTERM blocked, so that only this process reacts to them.

    A terminal sends Ctrl-C to all processes of a command, and `timeout` and schedulers send SIGTERM
    to its process group. A worker that ended then would lose samples that this process is about to
    fetch. `_init_worker` unblocks the signals once it has installed its handlers.

    Raises:
        SetrError: samples that workers need a copy of cannot be pickled.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return _iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        return _iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _iter(loader: DataLoader) -> Iterator[Any]:
    try:
        return iter(loader)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        if not loader.num_workers or multiprocessing.get_start_method() == "fork":
            raise
        raise SetrError(
            f"samples: worker processes cannot load them ({first_line(error)}); define their class "
            "at the top level of a .py file and keep no open files in it, or set data.workers to 0",
            code=USAGE,
        ) from None


def _init_worker(_: int) -> None:
    """Use one thread for decoding, ignore SIGINT, and end `LINGER` seconds after SIGTERM.

    The training process ends workers that do not respond with SIGTERM, so it cannot be ignored.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _end_later(*_: Any) -> None:
    timer = threading.Timer(LINGER, os._exit, (0,))
    timer.daemon = True
    timer.start()


def chosen_workers(device: torch.device) -> int:
    """Default number of workers of a training process.

    Training on a CPU needs the cores itself; for a GPU all cores but one load data.
    """
    if device.type == "cpu":
        return 2
    cores = cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of torchrun
    return min(MAX_WORKERS, max(1, cores - 1))


def _fits_shared_memory(batches: int, batch_bytes: int) -> bool:
    """Whether the batches fit into half of the free shared memory.

    If there is no room, PyTorch loses the batch and the training process waits for it forever.
    """
    if not SHARED_MEMORY.is_dir():
        return True  # not limited
    return 2 * batches * batch_bytes <= shutil.disk_usage(SHARED_MEMORY).free


def training_order(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    start: int,
    stop: int,
    share: Share | None = None,
) -> BatchOrder:
    """The order of samples in `training_batches`."""
    return BatchOrder(
        len(dataset),
        batch_size,
        seed=seed,
        start=start,
        stop=stop,
        share=share,
        permute=dataset.permutation,
    )


def training_batches(
    dataset: Dataset,
    augment: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    share: Share | None = None,
    pinned: bool = False,
    own: OwnAugmentation | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of steps start .. stop-1: images uint8 (B, H, W, C), masks uint8 (B, H, W).

    `batch_size` counts the images of all processes; `share` selects those of this process. `pinned`
    puts batches into pinned memory. Workers pass them in shared memory if there is enough of it,
    else through a pipe, which is slower. `own` is applied to the augmented samples.
    """
    if own is not None and workers:
        require_sendable(own.augment)
    images = len((share or Share(0, 1, 1)).of(batch_size))
    batch_bytes = images * math.prod(augment.crop_size) * (len(augment.fill) + 1)
    use_shared_memory = _fits_shared_memory(PREFETCH_FACTOR * workers + 1, batch_bytes)
    order = training_order(dataset, batch_size, seed=seed, start=start, stop=stop, share=share)
    loader = _Loader(
        _AugmentedSamples(dataset, augment, seed, own),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_stack_shared if use_shared_memory else stack,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # the loader would advance the global one
        pin_memory=pinned,
        prefetch_factor=PREFETCH_FACTOR if workers else None,
    )
    return _raise_errors(loader)


def whole_images(
    dataset: Dataset, workers: int, indices: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor] | SetrError]:
    """Samples of a split one by one in their original size, or the error of reading them.

    Workers send them through a pipe, because large images may not fit into shared memory.
    """
    loader = _Loader(
        _WholeImages(dataset),
        batch_size=1,
        sampler=indices,
        num_workers=min(workers, len(indices)),
        collate_fn=stack,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # the loader would advance the global one
    )
    for sample in _start(loader):
        yield sample if isinstance(sample, SetrError) else _tensors(sample)


def spread(length: int, count: int) -> list[int]:
    """`count` evenly spaced indices from 0 to length - 1, or all if there are fewer; one is 0."""
    if count >= length:
        return list(range(length))
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
