"""Pixels whose most probable class is not probable enough: they become unlabelled."""

from __future__ import annotations

import numpy as np

from setr.errors import USAGE, SetrError
from setr.labels import IGNORE


def checked_confidence(least: float) -> float:
    """A `min_confidence`, as it is.

    Raises:
        SetrError: not within 0 to 1.
    """
    if not 0 <= least <= 1:
        raise SetrError(f"min_confidence {least:g}: give 0 to 1", code=USAGE)
    return least


def unlabel(mask: np.ndarray, confidence: np.ndarray, least: float) -> int:
    """Set pixels below a confidence to `IGNORE` in place; returns how many had a class."""
    unsure = confidence < least
    unsure &= mask != IGNORE
    mask[unsure] = IGNORE
    return int(np.count_nonzero(unsure))
