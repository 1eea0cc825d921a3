"""Is a whole label shifted or mirrored against its image?

A label is compared with the prediction, also after it was shifted, mirrored or turned. A change is
believed if it removes at least half of the contradictions.

Shapes: H x W image. Agreement is the share of the labelled pixels that are predicted as labelled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from setr.labels import IGNORE
from setr.scores.label_quality import reach

GAIN = 0.05
"""A change must raise the agreement by this much."""
OVERLAP = 0.5
"""A shift must leave at least this share of the labelled pixels inside the image."""
CELLS = 128
"""The longer side of the map on which shifts are searched first."""


class Misplaced(NamedTuple):
    """What is wrong with a whole label.

    Attributes:
        kind: `shifted`, `mirrored`, `upside down`, `transposed`, or `turned left` or `right` (by
            90 degrees) or `around`.
        before: agreement of the label as it is; of a shifted one, in the part of the image where
            it is highest.
        after: agreement once it is put right.
        right: pixels by which the label lies too far to the right; negative if to the left.
        down: pixels by which the label lies too far down; negative if up.
    """

    kind: str
    before: float
    after: float
    right: int = 0
    down: int = 0


def agreement(truth: np.ndarray, prediction: np.ndarray) -> float | None:
    """Share of the labelled pixels (H, W) that are predicted as labelled; None without any."""
    counted = np.count_nonzero(truth != IGNORE)
    return int(np.count_nonzero(truth == prediction)) / counted if counted else None


def find_misplaced(truth: np.ndarray, prediction: np.ndarray) -> Misplaced | None:
    """The change that makes a label agree with the prediction; None if nothing helps.

    Args:
        truth: training ids uint8 (H, W).
        prediction: ids uint8 (H, W), none of which is `IGNORE`.
    """
    before = agreement(truth, prediction)
    if before is None or 1 - before < GAIN:
        return None
    variants = {
        "mirrored": truth[:, ::-1],
        "upside down": truth[::-1],
        "turned around": truth[::-1, ::-1],
    }
    if truth.shape[0] == truth.shape[1]:
        variants["turned left"] = np.rot90(truth, -1)
        variants["turned right"] = np.rot90(truth)
        variants["transposed"] = truth.T
    found = [
        Misplaced(kind, before, agreement(variant, prediction) or 0.0)
        for kind, variant in variants.items()
    ]
    found.append(_shifted(truth, prediction, before))
    believed = [change for change in found if is_better(change.before, change.after)]
    return max(believed, key=lambda change: change.after, default=None)


def is_better(before: float, after: float) -> bool:
    """Whether an agreement rises by `GAIN` and the contradictions are halved."""
    return after - before >= GAIN and 1 - after <= (1 - before) / 2


def _shifted(truth: np.ndarray, prediction: np.ndarray, before: float) -> Misplaced:
    """The best shift. `before` is then the agreement of the part that it leaves in the image."""
    step = math.ceil(max(truth.shape) / CELLS)
    first = (min(step // 2, n // 2) for n in truth.shape)  # the map has at least one cell
    cells = tuple(slice(start, None, step) for start in first)
    shift = _coarse_shift(truth[cells], prediction[cells])
    shift = (shift[0] * step, shift[1] * step)
    gain = _gain(truth, prediction, shift, before)
    while step > 1:
        step = (step + 1) // 2
        steps = (-step, 0, step)
        near = [(shift[0] + a, shift[1] + b) for a in steps for b in steps]
        gains = [_gain(truth, prediction, place, before) for place in near]
        if max(gains) > gain:
            gain = max(gains)
            shift = near[gains.index(gain)]
    label, predicted = _overlap(truth, prediction, shift)
    after = agreement(label, predicted) or 0.0
    if max(map(abs, shift)) <= reach(truth.shape):
        after = before
    # a shift moves pixels out of the image; it is no explanation if these were the contradictions
    parts = (_kept(shift), _kept((-shift[0], -shift[1])))
    stays = [agreement(truth[part], prediction[part]) for part in parts]
    return Misplaced(
        "shifted", max(a for a in (before, *stays) if a is not None), after, shift[1], shift[0]
    )


def _overlap(
    truth: np.ndarray, prediction: np.ndarray, shift: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The parts that lie on each other if the label lies (down, right) of where it belongs."""
    return truth[_kept(shift)], prediction[_kept((-shift[0], -shift[1]))]


def _kept(shift: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that a shift to (down, right) covers."""
    down, right = (slice(n, None) if n >= 0 else slice(None, n) for n in shift)
    return down, right


def _gain(
    truth: np.ndarray, prediction: np.ndarray, shift: tuple[int, int], before: float
) -> float:
    """How many more pixels agree than in as large a part of the label as it is."""
    label, predicted = _overlap(truth, prediction, shift)
    counted = np.count_nonzero(label != IGNORE)
    if counted < OVERLAP * np.count_nonzero(truth != IGNORE):
        return -math.inf
    return np.count_nonzero(label == predicted) - before * counted


def _coarse_shift(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int]:
    """The shift (down, right) with the largest gain, by correlation of each class's pixels."""
    H, W = truth.shape
    size = (cv2.getOptimalDFTSize(2 * H), cv2.getOptimalDFTSize(2 * W))
    labelled = truth != IGNORE

    def spectrum(region: np.ndarray) -> np.ndarray:
        return np.fft.rfft2(region.astype(np.float32), size)

    common = np.intersect1d(truth[labelled], prediction)
    same = np.zeros((size[0], size[1] // 2 + 1), np.complex128)
    for c in common:
        same += spectrum(truth == c) * spectrum(prediction == c).conj()
    counted = spectrum(labelled) * spectrum(np.ones_like(labelled)).conj()
    agreeing, covered = (np.rint(np.fft.irfft2(product, size)) for product in (same, counted))
    pixels = int(np.count_nonzero(labelled))
    gains = agreeing - covered * int(np.count_nonzero(truth == prediction)) / max(1, pixels)
    gains[covered < OVERLAP * pixels] = -np.inf
    down, right = np.unravel_index(int(gains.argmax()), size)
    return _signed(int(down), size[0]), _signed(int(right), size[1])


def _signed(index: int, length: int) -> int:
    return index - length if index > length // 2 else index
