"""Recall by region size (streaming): are small objects found at all?

A region is a connected component (8 neighbours) of truth pixels of one class. Its size is its area
in pixels, in COCO's three ranges. It counts as found if at least half of it is predicted as its
class.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

BUCKETS = {"small": 32**2, "medium": 96**2, "large": None}
"""Name of each size range and its exclusive upper bound on the area in pixels."""


class RegionRecall:
    """Integer counts per bucket.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # columns: regions, regions found, pixels, pixels hit
        self.counts = np.zeros((len(BUCKETS), 4), dtype=np.int64)
        self.ends = [end for end in BUCKETS.values() if end is not None]

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image: ids (H, W); truth ids outside the classes are skipped."""
        for c in np.unique(truth):
            if c >= self.num_classes:
                continue
            region = truth == c
            rows, columns = np.nonzero(region.any(axis=1))[0], np.nonzero(region.any(axis=0))[0]
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            _, numbers = cv2.connectedComponents(region[box].astype(np.uint8), connectivity=8)
            areas = np.bincount(numbers.ravel())[1:]
            hits = np.bincount(numbers[prediction[box] == c], minlength=len(areas) + 1)[1:]
            bucket = np.searchsorted(self.ends, areas, side="right")
            found = 2 * hits >= areas
            for column, values in enumerate((np.ones_like(areas), found, areas, hits)):
                np.add.at(self.counts[:, column], bucket, values)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per bucket `regions`, `found` (fraction of regions) and `recall` (fraction of pixels)."""
        return {
            name: {
                "regions": int(regions),
                "found": float(found / regions) if regions else None,
                "recall": float(hit / pixels) if pixels else None,
            }
            for name, (regions, found, pixels, hit) in zip(BUCKETS, self.counts, strict=True)
        }
