"""Boundary IoU and boundary F1 (streaming): accuracy along boundaries, which IoU hardly measures.

Boundary IoU (Cheng et al., CVPR 2021) is the IoU of the inner bands of truth and prediction: the
pixels of a class within `BAND` of another class or of the image border. Two filters over the label
map find the bands of all classes at once. Boundary F1 (Csurka et al., BMVC 2013) is the harmonic
mean of precision and recall of one-pixel contours matched within `TOLERANCE`. Counts are summed
over the whole set before dividing, as for IoU. Ignored pixels are ignored in both maps and neither
create nor hide a band. Many data sets ignore a thin line along every boundary, so before contours
are taken, ignored pixels within the tolerance plus one pixel of a class are filled with that class;
predicted contours on ignored pixels never count as wrong.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from setr.labels import IGNORE
from setr.metrics import by_class, mean_of, ratio

BAND = 0.02
"""Width of the bands, as a fraction of the image diagonal (as in the papers' code)."""

TOLERANCE = 0.0075
"""Distance within which contours match, as a fraction of the image diagonal."""


class BoundaryCounts:
    """Integer counts per class.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # columns: pixels in both bands, in the truth's, in the prediction's,
        # matched and all contour pixels of the prediction, the same of the truth
        self.counts = np.zeros((num_classes, 7), dtype=np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image: ids uint8 (H, W); truth may contain `IGNORE`."""
        K, ignored = self.num_classes, truth == IGNORE
        masked = np.where(ignored, IGNORE, prediction).astype(np.uint8)
        diagonal = float(np.hypot(*truth.shape))
        width = max(1, round(BAND * diagonal))
        truth_band, predicted_band = band(truth, width), band(masked, width)
        both = truth_band & predicted_band & (truth == masked)
        for column, (ids, region) in enumerate(
            [(truth, both), (truth, truth_band), (masked, predicted_band)]
        ):
            self.counts[:, column] += np.bincount(ids[region], minlength=K)[:K]
        tolerance = max(1.0, TOLERANCE * diagonal)
        truth = fill_ignored(truth, tolerance + 1)
        prediction = np.where(ignored & (prediction >= K), IGNORE, prediction).astype(np.uint8)
        prediction = fill_ignored(prediction, tolerance + 1)
        prediction[truth == IGNORE] = IGNORE
        truth_contour, predicted_contour = contour(truth), contour(prediction)
        for c in np.union1d(truth[truth_contour], prediction[predicted_contour]):
            if c < K:
                t, p = truth_contour & (truth == c), predicted_contour & (prediction == c)
                matched_p, matched_t = _near(p, t, tolerance), _near(t, p, tolerance)
                counted_p = p & (matched_p | ~ignored)
                self.counts[c, 3:5] += matched_p.sum(), counted_p.sum()
                self.counts[c, 5:7] += matched_t.sum(), t.sum()

    def summary(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Means of `iou` and `f` over the classes where they are defined, and both by class."""
        hits, truth, predicted, matched_p, p, matched_t, t = self.counts.T.astype(np.float64)
        iou = ratio(hits, truth + predicted - hits)
        precision, recall = np.nan_to_num(ratio(matched_p, p)), np.nan_to_num(ratio(matched_t, t))
        f = ratio(2 * precision * recall, precision + recall)
        f = np.where((p + t > 0) & (precision + recall == 0), 0.0, f)
        return {
            "iou": mean_of(iou),
            "f": mean_of(f),
            "iou_by_class": by_class(classes, iou),
            "f_by_class": by_class(classes, f),
        }


def band(ids: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: within `width` (Chebyshev distance) of another class or of the image border."""
    if min(ids.shape) <= 2 * width:
        return np.asarray(ids != IGNORE)
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    lowest = cv2.erode(ids, kernel)  # IGNORE is 255 and never the lowest
    highest = cv2.dilate(np.where(ids == IGNORE, 0, ids).astype(np.uint8), kernel)
    inside = (lowest == ids) & (highest == ids)
    inside[:width] = inside[-width:] = inside[:, :width] = inside[:, -width:] = False
    return np.asarray(~inside & (ids != IGNORE))


def fill_ignored(ids: np.ndarray, distance: float) -> np.ndarray:
    """Ids (H, W) with ignored pixels at most `distance` from a class set to the nearest class."""
    ignored = ids == IGNORE
    if not ignored.any() or ignored.all():
        return ids.copy()
    away, nearest = cv2.distanceTransformWithLabels(
        ignored.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_label = np.full(int(nearest.max()) + 1, IGNORE, dtype=np.uint8)
    by_label[nearest[~ignored]] = ids[~ignored]
    return np.asarray(np.where(away <= distance, by_label[nearest], ids))


def contour(ids: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with a 4-connected neighbour of another class, neither ignored."""
    edge = np.zeros(ids.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (ids[a] != ids[b]) & (ids[a] != IGNORE) & (ids[b] != IGNORE)
        edge[a] |= differ
        edge[b] |= differ
    return edge


def _near(points: np.ndarray, targets: np.ndarray, tolerance: float) -> np.ndarray:
    """(H, W) bool: points with a target within `tolerance` pixels (Euclidean distance)."""
    near = np.zeros(points.shape, bool)
    left, top, width, height = cv2.boundingRect(points.view(np.uint8))
    margin = int(tolerance) + 1
    box = (
        slice(max(top - margin, 0), top + height + margin),
        slice(max(left - margin, 0), left + width + margin),
    )
    if width and targets[box].any():
        away = (~targets[box]).astype(np.uint8)
        distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near[box] = points[box] & (distance <= tolerance)
    return near
