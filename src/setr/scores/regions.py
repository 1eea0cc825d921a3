"""Connected regions (streaming): are small objects found, and how many predicted ones are real?

A region is a connected component (8 neighbours) of pixels of one class, in the truth or in the
prediction. One of the truth is found if at least half of it is predicted as its class, one of the
prediction is right if at least half of its labelled pixels have its class. Thin things are rarely
covered by half, so it is also counted how many touch the other side with any pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

BUCKETS = {"small": 32**2, "medium": 96**2, "large": None}
"""Name of each size range, COCO's, and its exclusive upper bound on the area in pixels."""


class RegionCounts:
    """Integer counts per bucket and per class.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # columns: regions, regions found, pixels, pixels hit
        self.counts = np.zeros((len(BUCKETS), 4), dtype=np.int64)
        # per class: regions of the truth, found, touched; of the prediction, right, touching
        self.matches = np.zeros((num_classes, 6), dtype=np.int64)
        self.ends = [end for end in BUCKETS.values() if end is not None]

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image: ids (H, W); pixels whose truth is outside the classes are skipped."""
        for c in self._classes(truth):
            box, numbers = _regions(truth == c)
            areas = np.bincount(numbers.ravel())[1:]
            hits = np.bincount(numbers[prediction[box] == c], minlength=len(areas) + 1)[1:]
            bucket = np.searchsorted(self.ends, areas, side="right")
            found = 2 * hits >= areas
            for column, values in enumerate((np.ones_like(areas), found, areas, hits)):
                np.add.at(self.counts[:, column], bucket, values)
            self.matches[c, :3] += np.array([len(areas), found.sum(), np.count_nonzero(hits)])
        counted = truth < self.num_classes
        for c in self._classes(prediction):
            box, numbers = _regions(prediction == c)
            labelled = np.bincount(numbers[counted[box]], minlength=1)[1:]
            hits = np.bincount(numbers[truth[box] == c], minlength=len(labelled) + 1)[1:]
            labelled, hits = labelled[labelled > 0], hits[labelled > 0]
            right = 2 * hits >= labelled
            self.matches[c, 3:] += np.array([len(labelled), right.sum(), np.count_nonzero(hits)])

    def _classes(self, ids: np.ndarray) -> list[int]:
        return [int(c) for c in np.unique(ids) if c < self.num_classes]

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per bucket `regions`, `found` (fraction of regions) and `recall` (fraction of pixels)."""
        return {
            name: {
                "regions": int(regions),
                "found": _share(found, regions),
                "recall": _share(hit, pixels),
            }
            for name, (regions, found, pixels, hit) in zip(BUCKETS, self.counts, strict=True)
        }

    def by_class(self, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Per class the regions of the truth and of the prediction.

        Returns:
            `regions` and the fractions `found` and `touched` of them; `predicted` and the fractions
            `right` and `touching` of them. A fraction of none is None.
        """
        return {
            name: {
                "regions": int(row[0]),
                "found": _share(row[1], row[0]),
                "touched": _share(row[2], row[0]),
                "predicted": int(row[3]),
                "right": _share(row[4], row[3]),
                "touching": _share(row[5], row[3]),
            }
            for name, row in zip(classes, self.matches, strict=True)
        }


def _regions(inside: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The box around some pixels, and in it the number of each one's region; 0 is outside."""
    rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return box, cv2.connectedComponents(inside[box].astype(np.uint8), connectivity=8)[1]


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
