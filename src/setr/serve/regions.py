"""Limits the regions of a mask that become polygons: each takes time, and noisy masks have many."""

from __future__ import annotations

import cv2
import numpy as np

from setr.labels import IGNORE
from setr.serve.limits import Refusal

MAX_REGIONS = 10_000
"""Regions of an answer with polygons; that many take about four seconds."""
MAX_BOX_PIXELS = 1_000_000_000
"""Pixels in the boxes around them, which are searched one by one."""


def large_regions(mask: np.ndarray, num_classes: int, min_pixels: int) -> np.ndarray:
    """The mask without its small regions, which are left out of the polygons.

    Args:
        mask: training ids (H, W) uint8.
        num_classes: K.
        min_pixels: smaller regions (4 neighbours) become `IGNORE`.

    Raises:
        Refusal: 413, there are too many of the others.
    """
    large = mask.copy()
    count = box_pixels = 0
    for class_id in np.flatnonzero(np.bincount(mask.ravel(), minlength=num_classes)[:num_classes]):
        left, top, width, height = cv2.boundingRect((mask == class_id).view(np.uint8))
        box = slice(top, top + height), slice(left, left + width)
        inside = (mask[box] == class_id).view(np.uint8)
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
        small = stats[:, cv2.CC_STAT_AREA] < min_pixels
        small[0] = False  # the background
        large[box][small[numbers]] = IGNORE
        sides = stats[1:][~small[1:]][:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].astype(np.int64)
        count, box_pixels = count + len(sides), box_pixels + int(sides.prod(axis=1).sum())
        if count > MAX_REGIONS or box_pixels > MAX_BOX_PIXELS:
            raise Refusal(
                413,
                "too_many_regions",
                f"more regions than the limit of {MAX_REGIONS:,}, or boxes around them of more "
                f"than {MAX_BOX_PIXELS:,} pixels; leave small regions out with min_pixels (now "
                f"{min_pixels}), ask for a mask, or scale the image down",
            )
    return large
