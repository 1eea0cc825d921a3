"""Uncertainty of metrics: bootstrap intervals for one model, a paired test between two.

The bootstrap is streaming: instead of resampling images with replacement afterwards, each replicate
gives each image a Poisson(1) weight (Oza and Russell, 2001; the same distribution for many images).
The weights depend only on the seed and the image index, and all sums are integers, so intervals do
not depend on the order or the number of processes. Images are assumed to be independent; frames of
one video are not, and their intervals are too narrow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from setr.arguments.choices import Absent
from setr.errors import SetrError
from setr.metrics import class_pixels, ratio

STEPS = 1 << 30
LEVEL = 0.95
"""Confidence level of all intervals."""
ROUNDS = 10_000
"""Random draws of an interval or a test, made 500 at a time, which bounds their memory."""


class Bootstrap:
    """Counts of the whole set for each bootstrap replicate.

    Args:
        num_classes: K.
        replicates: number of replicates.
        seed: of the weights.
    """

    def __init__(self, num_classes: int, *, replicates: int = 1000, seed: int = 0) -> None:
        self.num_classes, self.seed = num_classes, seed
        # per replicate and class: hits, truth pixels, predicted pixels
        self.counts = np.zeros((replicates, 3, num_classes), dtype=np.int64)
        # per replicate: number of images, sum of per-image mIoU in steps; images without weights
        self.images = np.zeros((replicates, 3), dtype=np.int64)

    def update(self, index: int, matrix: np.ndarray) -> None:
        """Count one image.

        Args:
            index: of the image in the split, or of its group; images of a group are drawn together.
            matrix: its confusion matrix (K, K+1), truth in rows.
        """
        rng = np.random.default_rng((self.seed, index))
        weight = rng.poisson(1.0, len(self.counts))
        for i, part in enumerate(class_pixels(matrix)):
            seen = np.flatnonzero(part)
            self.counts[:, i, seen] += weight[:, None] * part[seen]
        miou = image_miou(matrix)
        if miou is not None:
            self.images[:, :2] += weight[:, None] * np.array([1, round(miou * STEPS)])
            self.images[:, 2] += 1

    def summary(self, *, absent: Absent = "skip", groups: int | None = None) -> dict[str, Any]:
        """Intervals [low, high] of `miou`, `pixel_accuracy` and `image_miou`.

        They are None with fewer than two images or groups, whose spread is unknown.

        Args:
            absent: how `miou` treats absent classes, see `setr.metrics`.
            groups: number of groups with labels, if images of a group were drawn together.
        """
        hits, truth, predicted = np.moveaxis(self.counts, 1, 0).astype(np.float64)
        iou = ratio(hits, truth + predicted - hits)
        present = (~np.isnan(iou)).sum(axis=1)
        if absent == "zero":
            present = np.where(present > 0, self.num_classes, 0)
        miou = ratio(np.nansum(iou, axis=1), present)
        accuracy = ratio(hits.sum(axis=1), truth.sum(axis=1))
        number, steps, images = self.images.T.astype(np.float64)
        drawn = images[0] if groups is None else groups
        return {
            "level": LEVEL,
            "replicates": len(self.counts),
            "miou": _interval(miou, drawn),
            "pixel_accuracy": _interval(accuracy, drawn),
            "image_miou": _interval(ratio(steps / STEPS, number), drawn),
        }


def image_miou(matrix: np.ndarray) -> float | None:
    """Mean IoU of one image over the classes in truth or prediction; None without any."""
    hits, truth, predicted = class_pixels(matrix)
    union = truth + predicted - hits
    present = union > 0
    return float((hits[present] / union[present]).mean()) if present.any() else None


def _interval(values: np.ndarray, drawn: float) -> list[float] | None:
    """Quantiles of the replicates' values; None if fewer than two images or groups were drawn."""
    values = values[~np.isnan(values)]
    if drawn < 2 or not values.size:
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return [float(low), float(high)]


def mean_interval(values: np.ndarray) -> list[float] | None:
    """Bootstrap 95 % interval [low, high] of the mean of values (N,); None for fewer than two."""
    drawn, count = np.random.default_rng(0), len(values)
    if count < 2:
        return None
    means = [
        values[drawn.integers(0, count, (500, count))].mean(axis=1) for _ in range(ROUNDS // 500)
    ]
    return _interval(np.concatenate(means), count)


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Compare two models on the same images.

    Args:
        ours: one metric per image (N,), for example `image_miou`.
        theirs: the same for the other model, in the same order.

    Returns:
        `difference`, mean of ours - theirs; `interval`, its bootstrap 95 % interval, None for one
        image; `p`, two-sided p-value of a Monte Carlo sign-flip permutation test (normality is not
        assumed); `better`, the fraction of images on which ours is higher; `images`, N.

    Raises:
        SetrError: no images.
    """
    if not len(ours):
        raise SetrError("nothing to compare: no image has labelled pixels in both evaluations")
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    rng = np.random.default_rng(0)
    count, observed = len(difference), float(difference.mean())
    extreme, means = 0, []
    for _ in range(ROUNDS // 500):
        shape = (500, count)
        signs = rng.integers(0, 2, shape, dtype=np.int8) * 2 - 1
        flipped = (signs @ difference) / count
        extreme += int((np.abs(flipped) >= abs(observed) - 1e-15).sum())
        drawn = rng.integers(0, count, shape)
        means.append(difference[drawn].mean(axis=1))
    return {
        "difference": observed,
        "interval": _interval(np.concatenate(means), count),
        "p": (extreme + 1) / (ROUNDS + 1),
        "better": float((difference > 0).mean()),
        "images": count,
    }
