"""Which labels of a split look wrong, from what was found in each image alone.

What needs all images is decided here: which regions are confident enough, labels that belong to
another image, and copies of an image that are labelled differently.

A region counts if its mean confidence is at least the mean probability that the model gives its
class where the data is labelled so, the threshold of confident learning (Northcutt et al., 2021),
and at least `SURE`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from setr.data.dataset import Dataset
from setr.errors import SetrError
from setr.labels import IGNORE
from setr.scores.misplaced import Misplaced, is_better

CELLS = 16
"""Labels and predictions are kept as maps of so many rows and columns, to compare images."""
DOUBTFUL = 0.2
"""Share of contradicted pixels from which a label may belong to another image."""
DOUBTFUL_IMAGES = 2000
"""So many of them are compared with each other, the most contradicted ones."""
COPIES_DIFFER = 0.1
"""Images that look the same are reported if their maps differ in this share of the cells."""
COPIES = 100
"""Copies of which the labels are compared pixel by pixel."""
SURE = 0.8
"""Least confidence of a region."""


class Looked(NamedTuple):
    """What was found in one image alone.

    Attributes:
        name: of the image.
        size: of the image (H, W).
        quality: of its label, 0 to 1; None if nothing is labelled.
        agreement: share of the labelled pixels that are predicted as labelled.
        misplaced: how the whole label is displaced.
        only: the class of all labelled pixels, if it is only one.
        regions: suspicious ones, (N,) of `label_quality.REGION`.
        copy: checksums of the image's and of the label's values.
        look: difference hash of the image.
        maps: label and prediction (2, CELLS, CELLS).
        sums: pixels (K,) and sum of the likelihoods (K,) of each class.
    """

    name: str
    size: tuple[int, ...]
    quality: float | None
    agreement: float | None
    misplaced: Misplaced | None
    only: int | None
    regions: np.ndarray
    copy: tuple[int, int]
    look: int
    maps: np.ndarray
    sums: tuple[np.ndarray, np.ndarray]


class Finding(NamedTuple):
    """One thing that looks wrong about a whole label: its kind, and a text without the image."""

    kind: str
    text: str
    values: dict[str, Any]


@dataclass
class Suspect:
    """A label that looks wrong: the image's number and what was found in it.

    Attributes:
        number: of the image in the split.
        looked: what was found in the image alone.
        findings: about the whole label.
        regions: those that are confident enough.
    """

    number: int
    looked: Looked
    findings: list[Finding]
    regions: np.ndarray

    @property
    def is_elsewhere(self) -> bool:
        """Whether the whole label is displaced or another image's, so regions say nothing more."""
        return any(finding.kind not in ("one class", "copy") for finding in self.findings)


def find_suspects(
    rows: Mapping[int, Looked], thresholds: np.ndarray, dataset: Dataset
) -> list[Suspect]:
    """All labels with a finding or a confident region.

    Args:
        rows: what was found in each image, by its number.
        thresholds: (K,) confidence from which a region counts; NaN for classes never labelled.

    Returns:
        The worst first: labels that are displaced or of another image, then by quality.
    """
    classes = dataset.labels.classes
    findings: dict[int, list[Finding]] = defaultdict(list)
    for number, finding in (*_swapped(rows), *_copies(rows, dataset)):
        findings[number].append(finding)
    found = []
    for number, row in rows.items():
        needed = np.fmax(thresholds[row.regions["predicted"]], SURE)  # also of NaN
        regions = row.regions[row.regions["confidence"] >= needed]
        own = [*_of_misplaced(row.misplaced), *findings[number]]
        if row.only is not None and len(regions):
            text = f"everything is labelled {classes[row.only]}"
            own.append(Finding("one class", text, {"class": classes[row.only]}))
        if own or len(regions):
            found.append(Suspect(number, row, own, regions))
    return sorted(found, key=lambda s: (not s.is_elsewhere, s.looked.quality or 0.0, s.number))


def _of_misplaced(found: Misplaced | None) -> Iterator[Finding]:
    if found is None:
        return
    gain = f"agreement {100 * found.before:.0f} %, put right {100 * found.after:.0f} %"
    values: dict[str, Any] = {"before": found.before, "after": found.after}
    if found.kind != "shifted":
        yield Finding(found.kind, f"label is {found.kind} ({gain})", values)
        return
    ways = [(found.right, "right", "left"), (found.down, "down", "up")]
    way = " and ".join(f"{abs(n)} px {a if n > 0 else b}" for n, a, b in ways if n)
    values |= {"right": found.right, "down": found.down}
    yield Finding("shifted", f"label is shifted {way} ({gain})", values)


def _swapped(rows: Mapping[int, Looked]) -> Iterator[tuple[int, Finding]]:
    """Labels that contradict their own image but agree with another one whose label does, too."""
    doubtful = [
        (row.agreement, number)
        for number, row in rows.items()
        if row.agreement is not None and 1 - row.agreement >= DOUBTFUL and row.misplaced is None
    ]
    numbers = [number for _, number in sorted(doubtful)[:DOUBTFUL_IMAGES]]
    if len(numbers) < 2:
        return
    labels = np.stack([rows[number].maps[0].ravel() for number in numbers])
    counted = np.maximum(np.count_nonzero(labels != IGNORE, axis=1), 1)
    for place, number in enumerate(numbers):
        predicted = rows[number].maps[1].ravel()
        shares = np.count_nonzero(labels == predicted, axis=1) / counted
        best = int(shares.argmax())
        if is_better(float(shares[place]), float(shares[best])):
            other = rows[numbers[best]].name
            values = {"image": other, "before": shares[place], "after": shares[best]}
            text = (
                f"the label of {other} fits better (agreement {100 * shares[place]:.0f} %, with "
                f"that one {100 * shares[best]:.0f} %)"
            )
            yield number, Finding("swapped", text, values)


def _copies(rows: Mapping[int, Looked], dataset: Dataset) -> Iterator[tuple[int, Finding]]:
    """Images with equal pixels, or that look the same, whose labels differ."""
    by_pixels: dict[int, list[int]] = defaultdict(list)
    by_look: dict[int, list[int]] = defaultdict(list)
    for number, row in sorted(rows.items()):
        by_pixels[row.copy[0]].append(number)
        if row.look:
            by_look[row.look].append(number)
    left = COPIES
    pairs = [
        pair
        for groups in (by_pixels, by_look)
        for group in groups.values()
        for pair in pairwise(group)
    ]
    for one, two in dict.fromkeys(pairs):
        a, b = rows[one], rows[two]
        if a.copy == b.copy:
            continue
        share = float((a.maps[0] != b.maps[0]).mean())
        if a.copy[0] == b.copy[0] and left:
            left -= 1
            share = _difference(dataset, one, two)
        elif share < COPIES_DIFFER:
            continue
        for number, other in ((one, b.name), (two, a.name)):
            text = f"{other} shows the same, but {100 * share:.3g} % of its label differ"
            yield number, Finding("copy", text, {"image": other, "difference": share})


def _difference(dataset: Dataset, one: int, two: int) -> float:
    """Share of the pixels in which two labels differ; 1 if they cannot be compared."""
    try:
        a, b = (dataset.load(number).mask for number in (one, two))
    except SetrError:
        return 1.0
    return float((a != b).mean()) if a.shape == b.shape else 1.0
