"""Checks a data set before the first training step, not after hours.

Every pair is decoded in parallel; problems are collected, not raised one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from setr.datasets import Dataset
from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.metrics import class_pixels

SHOWN = 10


@dataclass(frozen=True)
class Checkup:
    """What a check of one split found.

    Attributes:
        problems: one line per broken pair.
        pixels: (K,) counted pixels per class over the readable pairs.
    """

    dataset: Dataset
    problems: tuple[str, ...]
    pixels: np.ndarray

    def raise_problems(self) -> None:
        """Raise one `SetrError` listing the first ten problems and their number, if any."""
        if self.problems:
            listed = "; ".join(self.problems[:SHOWN])
            more = f"; and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
            raise SetrError(
                f"{len(self.problems)} of {len(self.dataset)} pairs of split "
                f"'{self.dataset.split}' are unusable: {listed}{more}",
                code=DATA_CHECK_FAILED,
            )


def check(dataset: Dataset, *, progress: Callable[[int, int], None] | None = None) -> Checkup:
    """Decode every pair of a split: readable, same size, ids inside the classes.

    Args:
        dataset: the split.
        progress: called with (done, total).
    """
    num_classes = len(dataset.labels.classes)

    def examine(index: int) -> tuple[str | None, np.ndarray]:
        try:
            return None, class_pixels([dataset.load(index).mask], num_classes)
        except SetrError as error:
            return str(error), np.zeros(num_classes, np.int64)

    problems, pixels = [], np.zeros(num_classes, np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (problem, counts) in enumerate(pool.map(examine, range(len(dataset))), 1):
            pixels += counts
            if problem:
                problems.append(problem)
            if progress:
                progress(done, len(dataset))
    return Checkup(dataset, tuple(problems), pixels)


def class_weights(pixels: np.ndarray, kind: str, *, limit: float = 4.0) -> np.ndarray:
    """Class weights from pixel counts: median frequency / frequency, or its square root.

    Args:
        pixels: (K,) counts; a class that never occurs gets weight 1.
        kind: `median_frequency` or `sqrt_median_frequency`.
        limit: largest weight.
    """
    share = pixels / max(pixels.sum(), 1)
    present = share > 0
    weights = np.ones_like(share)
    weights[present] = np.median(share[present]) / share[present]
    if kind == "sqrt_median_frequency":
        weights = np.sqrt(weights)
    return np.minimum(weights, limit)
