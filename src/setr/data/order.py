"""The order of training samples, which depends on (seed, step) only.

The permutation of an epoch is seeded by (seed, epoch), and the position in it follows from the
step. There is no other state, so a resumed run gets the order of an uninterrupted one, with any
number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from setr.data.dataset import Dataset

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

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def of(self, batch_size: int) -> np.ndarray:
        """Positions in the batch, in ascending order."""
        positions = np.arange(batch_size).reshape(self.accumulate, self.world, -1)
        return positions[:, self.rank].ravel()


WHOLE = Share()
"""All of a batch."""


class BatchOrder:
    """Batch sampler that yields the (epoch, index) pairs of each step's batch.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch; a batch may span two epochs.
        seed: seed of the order.
        start: first step.
        stop: step after the last.
        share: part of every batch to yield.
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
        share: Share = WHOLE,
        permute: Permute | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.share = start, stop, share
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


class Extra(NamedTuple):
    """Further images beside those of a training split.

    Attributes:
        dataset: the images.
        per_batch: number of them in every batch.
    """

    dataset: Dataset
    per_batch: int


def further_places(size: int, count: int) -> np.ndarray:
    """Which places of a batch (size,) bool have further images: `count`, spread evenly over it."""
    places = np.zeros(size, bool)
    places[(np.arange(count) * size + size - 1) // count] = True
    return places


class MixedOrder:
    """Batches of a split and of further images, spread evenly over each batch.

    Args:
        split: order of the split's samples in all processes.
        extra: the same of the further images; their indices follow those of the split.
        share: part of every batch to yield.
    """

    def __init__(self, split: BatchOrder, extra: BatchOrder, share: Share) -> None:
        self.split, self.extra, self.share = split, extra, share

    def __len__(self) -> int:
        return len(self.split)

    def __iter__(self) -> Iterator[list[Position]]:
        size = self.split.batch_size + self.extra.batch_size
        is_extra = further_places(size, self.extra.batch_size)
        own = self.share.of(size)
        for ours, others in zip(self.split, self.extra, strict=True):
            from_split = iter(ours)
            from_extra = ((epoch, self.split.length + index) for epoch, index in others)
            batch = [next(from_extra if extra else from_split) for extra in is_extra]
            yield [batch[i] for i in own]


Order = BatchOrder | MixedOrder


def training_order(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    start: int,
    stop: int,
    share: Share = WHOLE,
    extra: Extra | None = None,
) -> Order:
    """The order of a data set's samples in steps start .. stop-1; see `BatchOrder`."""

    def order(of: Dataset, count: int, share: Share = WHOLE) -> BatchOrder:
        steps = {"seed": seed, "start": start, "stop": stop}
        return BatchOrder(len(of), count, **steps, share=share, permute=of.permutation)

    if extra is None:
        return order(dataset, batch_size, share)
    split = order(dataset, batch_size - extra.per_batch)
    return MixedOrder(split, order(extra.dataset, extra.per_batch), share)
