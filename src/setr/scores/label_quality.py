"""How well the label of one image agrees with a model, and where the two contradict each other.

The quality of a label is the soft minimum of the probabilities that the model gives to the class of
each labelled pixel (Lad and Mueller, 2023): the mean in which a pixel of probability p has the
weight exp((1 - p) / `TEMPERATURE`), so that a few unlikely pixels lower it more than in the plain
mean.

A region is suspicious if its predicted class is nowhere near in the label: every annotator draws
borders differently. It is a connected area (8 neighbours), at least as large as a disc with the
radius of the tolerance.

Shapes: H x W image.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from setr.labels import IGNORE
from setr.scores.boundary import TOLERANCE

TEMPERATURE = 0.1
"""Of the soft minimum, as in cleanlab's `get_label_quality_scores`."""

MAX_REGIONS = 50
"""Regions kept per image, the most suspicious ones."""

REGION = np.dtype(
    [
        ("given", "u1"),
        ("predicted", "u1"),
        ("pixels", "i4"),
        ("left", "i4"),
        ("top", "i4"),
        ("width", "i4"),
        ("height", "i4"),
        ("confidence", "f4"),
        ("likelihood", "f4"),
    ]
)
"""A region: the most frequent class of its label, the predicted class, its size and bounding box in
pixels, and the mean probabilities of the predicted class and of the label."""


def reach(shape: tuple[int, ...]) -> int:
    """Tolerance for borders in an image (H, W) in pixels, at least 1; that of the boundary F."""
    return max(1, round(TOLERANCE * math.hypot(shape[0], shape[1])))


def soft_minimum(values: np.ndarray) -> float | None:
    """The soft minimum of probabilities (N,) float32; None of no values."""
    if not values.size:
        return None
    weights = np.exp((values.min() - values) * np.float32(1 / TEMPERATURE))  # at most 1
    total = weights.sum(dtype=np.float64)
    return float((weights * values).sum(dtype=np.float64) / total)


def label_quality(truth: np.ndarray, likelihood: np.ndarray) -> float | None:
    """The quality of a label, 0 to 1, higher is better.

    Args:
        truth: training ids uint8 (H, W).
        likelihood: the model's probability of the true class (H, W) float32.

    Returns:
        None if no pixel is labelled.
    """
    return soft_minimum(likelihood[truth != IGNORE])


def suspicious_regions(
    truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, likelihood: np.ndarray
) -> np.ndarray:
    """Areas whose predicted class is nowhere near in the label.

    Args:
        truth: training ids uint8 (H, W); ignored pixels belong to no region.
        prediction: ids uint8 (H, W).
        confidence: probability of the predicted class (H, W) float32.
        likelihood: probability of the true class (H, W) float32.

    Returns:
        (N,) of `REGION`, N up to `MAX_REGIONS`, the one with the largest sum of confidence minus
        likelihood first.
    """
    wrong = (prediction != truth) & (truth != IGNORE)
    radius = reach(truth.shape)
    least = max(2, round(math.pi * radius**2))
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    found = []
    for c in np.unique(prediction[wrong]):
        own = wrong & (prediction == c)
        if np.count_nonzero(own) < least:
            continue
        near = cv2.dilate((truth == c).astype(np.uint8), square)
        _, numbers, boxes, _ = cv2.connectedComponentsWithStats(
            (own & (near == 0)).astype(np.uint8), connectivity=8
        )
        for number in np.flatnonzero(boxes[1:, cv2.CC_STAT_AREA] >= least) + 1:
            left, top, width, height, pixels = (int(n) for n in boxes[number])
            box = np.s_[top : top + height, left : left + width]
            inside = numbers[box] == number
            given = np.bincount(truth[box][inside]).argmax()
            means = (float(map_[box][inside].mean()) for map_ in (confidence, likelihood))
            found.append((given, c, pixels, left, top, width, height, *means))
    regions = np.array(found, REGION)
    weight = regions["pixels"] * (regions["confidence"] - regions["likelihood"])
    return regions[np.argsort(-weight, kind="stable")[:MAX_REGIONS]]


def likelihood_sums(
    truth: np.ndarray, likelihood: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each class, its labelled pixels (K,) and the sum of their likelihoods (K,) float64."""
    ids = truth.ravel()
    pixels = np.bincount(ids, minlength=256)[:num_classes]
    sums = np.bincount(ids, weights=likelihood.ravel(), minlength=256)[:num_classes]
    return pixels, sums
