"""Class weights of the loss, from pixel counts or as written in the settings.

The setting is either the name of a rule based on pixel counts, or weights by class as in
`sky=0.5,pole=4`, where classes not named have weight 1. An item ends at a comma after a number, so
class names may contain spaces, commas and equals signs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from setr.errors import UsageError, check_setting, first_few, nearest

KINDS = ("none", "auto", "median_frequency", "sqrt_median_frequency")
"""Names of rules; all but `none` use pixel counts."""
_SETTING = "train.class_weights"
_SHOWN = 30


def class_weights(pixels: np.ndarray, kind: str, *, limit: float = 4.0) -> np.ndarray:
    """Class weights from pixel counts: median frequency / frequency, or its square root.

    Args:
        pixels: (K,) counts; absent classes get weight 1.
        kind: `median_frequency` (or `auto`), or `sqrt_median_frequency`.
    """
    share = pixels / max(pixels.sum(), 1)
    present = share > 0
    weights = np.ones_like(share)
    if not present.any():
        return weights
    weights[present] = np.median(share[present]) / share[present]
    if kind == "sqrt_median_frequency":
        weights = np.sqrt(weights)
    return np.minimum(weights, limit)


def named_weights(text: str) -> dict[str, float]:
    """The given weights, by class; empty if the text is one of `KINDS`.

    Raises:
        SetrError: neither form, a class named twice, or a weight that is negative or not finite.
    """
    if text in KINDS:
        return {}
    weights: dict[str, float] = {}
    item = ""
    for part in text.split(","):
        item = f"{item},{part}" if item else part
        name, equals, value = item.rpartition("=")
        try:
            weight = float(value) if equals else math.nan
        except ValueError:
            equals = ""
        if not equals:  # the comma is part of a name
            continue
        name = name.strip()
        check_setting(bool(name), f"{_SETTING} {item}: {_form(item)}")
        check_setting(0 <= weight < math.inf, f"{_SETTING} {item.strip()}: give 0 or more")
        check_setting(name not in weights, f"{_SETTING}: '{name}' is named twice; give one weight")
        weights[name], item = weight, ""
    check_setting(not item.strip() and bool(weights), f"{_SETTING} {item or text}: {_form(text)}")
    return weights


def _form(text: str) -> str:
    near = nearest(text, KINDS)
    hint = f"; did you mean {near}?" if near else ""
    return f"give {', '.join(KINDS)}, or weights as in NAME=0.5,NAME=4{hint}"


def by_class(weights: Mapping[str, float], classes: Sequence[str]) -> list[float]:
    """The weights of all classes, in order; 1 for classes not named.

    Raises:
        SetrError: an unknown class (suggests the nearest), or only zero weights.
    """
    for name in weights:
        if name not in classes:
            raise UsageError(f"{_SETTING}: '{name}' is not a class; {_hint(name, classes)}")
    found = [weights.get(name, 1.0) for name in classes]
    check_setting(
        any(found), f"{_SETTING}: all classes have weight 0; give at least one a larger weight"
    )
    return found


def _hint(name: str, classes: Sequence[str]) -> str:
    if "=" in name:
        return "write NAME=NUMBER,NAME=NUMBER"
    by_small = {known.lower(): known for known in classes}
    near = nearest(name.lower(), by_small)
    if near:
        return f"did you mean '{by_small[near]}'?"
    return f"there are {first_few(classes, _SHOWN)}"


def described(weights: Sequence[float], classes: Sequence[str]) -> str:
    """The weights as text: `sky 0.5, pole 4; others 1`."""
    shown = [f"{name} {w:.3g}" for name, w in zip(classes, weights, strict=True) if w != 1]
    others = "; others 1" if len(shown) < len(classes) else ""
    return first_few(shown, _SHOWN) + others if shown else "all 1"
