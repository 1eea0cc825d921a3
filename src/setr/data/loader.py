"""From a data set to training batches, in an order that depends on (seed, step) alone.

The permutation of an epoch comes from (seed, epoch), the position in it from the step, the
augmentation of a sample from (seed, epoch, index). Nothing else carries state, so a resumed run
sees the batches the uninterrupted one would have seen, whatever the number of workers and of
processes.
"""

from __future__ import annotations

import math
import os
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
from setr.errors import SetrError
from setr.processes.quota import cpus
from setr.transforms import Augmentation

LINGER = 10.0
"""Seconds that a worker lives on after SIGTERM."""
_STOPS = (signal.SIGINT, signal.SIGTERM)

MOST_WORKERS = 8
SHARED_MEMORY = Path("/dev/shm")
"""Where workers put batches for the training process; small in containers (Docker: 64 MB)."""
PREFETCHED = 2
"""Batches that a worker has ready."""

Loaded = tuple[np.ndarray, np.ndarray] | SetrError
Position = tuple[int, int]  # (epoch, index)
Permute = Callable[[np.random.Generator], np.ndarray]


class Share(NamedTuple):
    """The part of a global batch that one process computes.

    The batch is cut into micro-batches, each of these into one slice per process: a micro-batch
    holds the same images, and batch norm sees the same ones together, for any number of processes.

    Attributes:
        rank: of the process.
        world: number of processes.
        accumulate: micro-batches per batch.
    """

    rank: int
    world: int
    accumulate: int

    def of(self, batch_size: int) -> np.ndarray:
        """Positions in the batch, in ascending order."""
        cut = np.arange(batch_size).reshape(self.accumulate, self.world, -1)
        return cut[:, self.rank].ravel()


class BatchOrder:
    """Yields the (epoch, index) pairs of each batch from a step on.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch; a batch may span two epochs.
        seed: of the order.
        start: first step.
        stop: step after the last.
        share: which part of every batch to yield.
        permute: gives an epoch's order; any order of the samples by default.
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


class _Augmented(TorchDataset):
    def __init__(self, dataset: Dataset, augment: Augmentation, seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitem__(self, position: Position) -> Loaded:
        epoch, index = position
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            return self.augment(*self.dataset.open(index), rng)
        except SetrError as error:
            return error


class _Whole(TorchDataset):
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
    """Samples of equal size -> images uint8 (B, H, W, C) and masks uint8 (B, H, W)."""
    arrays = []
    for sample in samples:
        if isinstance(sample, SetrError):
            return sample
        arrays.append(sample)
    images, masks = zip(*arrays, strict=True)
    return np.stack(images), np.stack(masks)


def _stack_shared(samples: list[Loaded]) -> tuple[Tensor, Tensor] | SetrError:
    """As `stack`; a worker hands tensors over in shared memory, where it sends arrays."""
    batch = stack(samples)
    return batch if isinstance(batch, SetrError) else _tensors(batch)


def _tensors(batch: Sequence[np.ndarray | Tensor]) -> tuple[Tensor, Tensor]:
    images, masks = map(torch.as_tensor, batch)
    return images, masks


class _Loader(DataLoader):
    """With as many processes as were chosen or asked for, and no opinion of PyTorch's on that."""

    def check_worker_number_rationality(self) -> None:
        """Say nothing."""


def _raising(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Raise errors here, in one line, rather than with a worker's traceback around them."""
    for batch in _started(loader):
        if isinstance(batch, SetrError):
            raise batch
        yield _tensors(batch)


def _started(loader: DataLoader) -> Iterator[Any]:
    """Begin to load; signals that ask to stop are left to this process.

    A terminal sends Ctrl-C to all processes of a command, and `timeout` and schedulers SIGTERM to
    its group. A worker that ended there would take samples with it that this process is about to
    fetch. So workers outlive both, from their first moment on: they begin with both held back.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_: int) -> None:
    """A worker decodes in one thread, and ends when the process that reads is done with it.

    SIGTERM ends it after `LINGER`, as that is what this process sends to one that does not answer.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _end_later(*_: Any) -> None:
    timer = threading.Timer(LINGER, os._exit, (0,))
    timer.daemon = True
    timer.start()


def chosen_workers(device: torch.device) -> int:
    """How many workers suit a training where none were asked for.

    A CPU that trains needs its cores itself; a GPU is fed by every core but one.
    """
    if device.type == "cpu":
        return 2
    cores = cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes share
    return min(MOST_WORKERS, max(1, cores - 1))


def _fits_shared_memory(batches: int, batch_bytes: int) -> bool:
    """Whether batches can wait there; one that finds no room is lost, and waited for without end.

    Half is left to others.
    """
    if not SHARED_MEMORY.is_dir():
        return True  # no such limit
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
    """The samples that `training_batches` puts into its batches."""
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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of steps start .. stop-1: images uint8 (B, H, W, C), masks uint8 (B, H, W).

    `batch_size` counts the images of all processes; `share` selects those of this one. `pinned`
    puts them into memory that a GPU reads by itself. They come from the workers through shared
    memory where that has room for them, else through a pipe, which takes longer.
    """
    held = len((share or Share(0, 1, 1)).of(batch_size))
    batch_bytes = held * math.prod(augment.crop_size) * (len(augment.fill) + 1)
    roomy = _fits_shared_memory(PREFETCHED * workers + 1, batch_bytes)
    order = training_order(dataset, batch_size, seed=seed, start=start, stop=stop, share=share)
    loader = _Loader(
        _Augmented(dataset, augment, seed),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_stack_shared if roomy else stack,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # or making the loader would advance the global one
        pin_memory=pinned,
        prefetch_factor=PREFETCHED if workers else None,
    )
    return _raising(loader)


def whole_images(
    dataset: Dataset, workers: int, indices: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor] | SetrError]:
    """Samples of a split one at a time and at their own size, or what is wrong with them.

    They come through a pipe, as any number of pixels does.
    """
    loader = _Loader(
        _Whole(dataset),
        batch_size=1,
        sampler=indices,
        num_workers=min(workers, len(indices)),
        collate_fn=stack,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # or making the loader would advance the global one
    )
    for sample in _started(loader):
        yield sample if isinstance(sample, SetrError) else _tensors(sample)
