"""The share of each class in an image, and how it is told in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


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
