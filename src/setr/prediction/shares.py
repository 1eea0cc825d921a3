"""The share of each class in an image, and of pixels whose class is not probable enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def largest(
    shares: Mapping[str, float], min_confidence: float, areas: Mapping[str, float] | None = None
) -> str:
    """One line with the four largest shares, and with `min_confidence` the unlabelled share.

    Args:
        shares: of the classes.
        min_confidence: of the prediction.
        areas: square metres of the classes, if known.
    """
    known = areas or {}
    parts = [
        f"{name} {share:.0%}" + (f" ({area_text(known[name])})" if name in known else "")
        for name, share in list(shares.items())[:4]
    ]
    if min_confidence:
        parts.append(f"unlabelled {max(0.0, 1 - sum(shares.values())):.0%}")
    return ", ".join(parts)


def area_text(square_metres: float) -> str:
    """An area in hectares, below a tenth of one in square metres."""
    hectares = square_metres / 10_000
    if hectares < 0.1:
        return f"{square_metres:.4g} m²"
    return f"{hectares:.4g} ha" if hectares < 1000 else f"{hectares:,.0f} ha"


def share_table(
    image: str,
    size: Sequence[int],
    mean_confidence: float | None,
    counts: np.ndarray,
    classes: Sequence[str],
    *,
    unsure: int = 0,
    min_confidence: float = 0.0,
    areas: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What a `share` file holds, JSON-serialisable.

    Args:
        image: path of the image.
        size: (H, W).
        mean_confidence: over all pixels with data; None if it was not computed.
        counts: (256,) pixels by id.
        classes: names.
        unsure: pixels unlabelled because of `min_confidence`.
        min_confidence: of the prediction.
        areas: square metres by class, where the place of the image is known.
    """
    shares = class_shares(counts, classes, unsure)
    pixels = {name: int(counts[classes.index(name)]) for name in shares}
    found: dict[str, Any] = {
        "image": image,
        "size": [int(side) for side in size],
        **({} if mean_confidence is None else {"mean_confidence": mean_confidence}),
        "shares": shares,
        "pixels": pixels,
    }
    if areas:
        found["area_m2"] = dict(areas)
    if min_confidence:
        total = max(1, sum(pixels.values()) + unsure)
        found |= {"min_confidence": min_confidence, "unlabelled": unsure / total}
    return found
