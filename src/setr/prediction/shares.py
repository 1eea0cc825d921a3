"""The share of each class in an image, and of pixels whose class is not probable enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from setr.errors import UsageError
from setr.labels import IGNORE


def checked_confidence(least: float) -> float:
    """A `min_confidence`, as it is.

    Raises:
        SetrError: not within 0 to 1.
    """
    if not 0 <= least <= 1:
        raise UsageError(f"min_confidence {least:g}: give 0 to 1")
    return least


def unlabel(mask: np.ndarray, confidence: np.ndarray, least: float) -> int:
    """Set pixels below a confidence to `IGNORE` in place; returns how many had a class."""
    unsure = confidence < least
    unsure &= mask != IGNORE
    mask[unsure] = IGNORE
    return int(np.count_nonzero(unsure))


def class_shares(counts: np.ndarray, classes: Sequence[str], unsure: int) -> dict[str, float]:
    """Share of each class that occurs, largest first; `unsure` unlabelled pixels count, too."""
    known = counts[: len(classes)]
    total = max(1, known.sum() + unsure)
    order = np.argsort(-known, kind="stable")
    return {classes[i]: float(known[i] / total) for i in order if known[i]}


def largest(shares: Mapping[str, float], min_confidence: float) -> str:
    """One line with the four largest shares, and with `min_confidence` the unlabelled share."""
    parts = [f"{name} {share:.0%}" for name, share in list(shares.items())[:4]]
    if min_confidence:
        parts.append(f"unlabelled {max(0.0, 1 - sum(shares.values())):.0%}")
    return ", ".join(parts)
