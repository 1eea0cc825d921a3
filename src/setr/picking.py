"""Chooses which unlabelled images to label next: uncertain ones that do not look alike.

The uncertainty of an image is the mean of that of its pixels with data, 1 minus the difference
between the two highest class probabilities (the margin; Scheffer et al., 2001).

Uncertainty alone picks one frame of a video after another. Images are therefore chosen one by one,
each time the one with the largest product of its uncertainty and its distance to the most similar
image chosen before: farthest-first traversal, which is the greedy core-set (Sener and Savarese,
2018), with weights. How much that matters grows with the redundancy of the images (Mittal et al.,
2023). The distance of two images is the root mean square difference of their thumbnails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch import Tensor

from setr.data.dataset import Dataset
from setr.evaluation import PassOptions, measure_split
from setr.labels import IGNORE
from setr.model_info import ModelInfo
from setr.opening import Trained
from setr.scores.scored_images import ScoredImage

if TYPE_CHECKING:
    from typing_extensions import Unpack

THUMBNAIL = 16
"""Side of a thumbnail in pixels."""


@dataclass(frozen=True)
class Picks:
    """The result of picking.

    Attributes:
        names: of the images, by number.
        uncertainty: of each image, 0 to 1, by number.
        chosen: numbers of the chosen images, in order.
        failed: a line for each image that could not be read.
        protocol: how the images were predicted.
        complete: whether all images were seen.
    """

    names: dict[int, str]
    uncertainty: dict[int, float]
    chosen: list[int]
    failed: list[str]
    protocol: str
    complete: bool


def margin_uncertainty(scores: Tensor, truth: Tensor) -> Tensor:
    """1 minus the margin of the two highest probabilities, (B, r, W), of scores (B, K, r, W).

    It is 0 where the truth is ignored: there the image has no data.
    """
    best, ids = scores.max(dim=1, keepdim=True)
    odds = (scores - best).exp_()  # 1 for the best class
    total = odds.sum(dim=1)
    second = odds.scatter_(1, ids, 0.0).amax(dim=1)
    return second.sub_(1).div_(total).add_(1) * (truth != IGNORE)


class Uncertain:
    """Takes the images of an evaluation that measures `margin_uncertainty`, a kilobyte each."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.uncertainty: dict[int, float] = {}
        self.thumbnails: dict[int, np.ndarray] = {}

    def __call__(self, scored: ScoredImage) -> None:
        """Add an image."""
        assert scored.measured is not None
        size = (THUMBNAIL, THUMBNAIL)
        self.names[scored.number] = scored.name
        counted = max(1, np.count_nonzero(scored.truth != IGNORE))
        self.uncertainty[scored.number] = float(scored.measured.sum(dtype=np.float64) / counted)
        self.thumbnails[scored.number] = cv2.resize(
            np.ascontiguousarray(scored.image), size, interpolation=cv2.INTER_AREA
        ).ravel()


def farthest_first(weights: np.ndarray, points: np.ndarray, count: int) -> list[int]:
    """Choose heavy points that are far from each other.

    Args:
        weights: (N,) 0 or more.
        points: (N, D).
        count: how many to choose; at most N are.

    Returns:
        Indices in the order of their choice; the first is the heaviest. Points at the place of a
        chosen one come last, the heaviest first.
    """
    points = points.astype(np.float32)
    nearest = np.full(len(points), np.inf, np.float32)
    left = np.ones(len(points), bool)
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        value = weights if not chosen else weights * nearest
        value = np.where(left, value, -1.0)
        best = int(value.argmax())
        if chosen and value[best] <= 0:  # only copies are left
            best = int(np.where(left, weights, -1.0).argmax())
        chosen.append(best)
        left[best] = False
        gaps = np.sqrt(np.square(points - points[best]).mean(axis=1))
        np.minimum(nearest, gaps, out=nearest)
    return chosen


def pick_images(
    model: Trained,
    info: ModelInfo,
    dataset: Dataset,
    count: int,
    **options: Unpack[PassOptions],
) -> Picks:
    """Predict images under `info.protocol` and choose those to label next.

    Args:
        model: on any device.
        dataset: the images, from `open_unlabelled`.
        count: how many to choose.
        options: those of `evaluate_split`. Once `stopped` returns true, the choice is among the
            images seen.

    Raises:
        SetrError: as `evaluate_split`.
    """
    seen = Uncertain()
    failed, complete = measure_split(model, info, dataset, margin_uncertainty, seen, **options)
    numbers = sorted(seen.names)
    chosen: list[int] = []
    if numbers:
        weights = np.array([seen.uncertainty[number] for number in numbers])
        points = np.stack([seen.thumbnails[number] for number in numbers])
        chosen = [numbers[i] for i in farthest_first(weights, points, count)]
    protocol = info.protocol.describe()
    return Picks(seen.names, seen.uncertainty, chosen, failed, protocol, complete)
