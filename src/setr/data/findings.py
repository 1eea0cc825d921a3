"""What can be wrong with one split of a data set: one function for each kind of problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from setr.data.dataset import Dataset
from setr.data.pairs import Pairs
from setr.data.sampling import evenly_spaced
from setr.data.survey_rows import ALL_IGNORED, ALPHA, BINARY, DARK, DIM, ROTATED, Survey
from setr.errors import SetrError, first_few
from setr.labels import IGNORE, marks_no_class
from setr.reading.masks import IN_ALPHA, are_reordered

SHOWN = 10
"""Number of files, classes or problems that are named; the rest are counted."""
SAMPLED_PALETTES = 200
"""Number of masks of a split whose palettes are compared."""

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One kind of problem in a split.

    Attributes:
        level: errors stop training, warnings may affect the scores, notes are information.
        split: name of the split.
        text: the problem, and what to do.
        count: number of files or classes concerned.
        files: the first of these files.
    """

    level: Level
    split: str
    text: str
    count: int = 1
    files: tuple[str, ...] = ()


def split_findings(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """All findings about the readable pairs of a split, errors first.

    Args:
        scan: what was read of each pair.
        pixels: (K,) pixels per class.
    """
    return [finding for look in _KINDS for finding in look(dataset, scan, pixels)]


def about(dataset: Dataset, level: Level, text: str, rows: np.ndarray) -> list[Finding]:
    """A finding about some pairs of a split; none if there are no such pairs.

    Args:
        level: see `Finding`.
        text: what is wrong with them, after their number.
        rows: indices of the pairs.
    """
    if not len(rows):
        return []
    files = tuple(str(dataset.pairs[int(i)].image) for i in rows[:SHOWN])
    return [Finding(level, dataset.split, f"{len(rows)} {text}", len(rows), files)]


def _single_class(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """A single class, which makes every prediction right."""
    if len(dataset.labels.classes) > 1:
        return []
    name = dataset.labels.classes[0]
    text = (
        f"'{name}' is the only class, so every prediction is right; make the rest a class, too: "
        f"classes: [background, {name}], label_map: {{0: background, …}}"
    )
    return [Finding("error", dataset.split, text)]


def _binary(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Masks of 0 and 255 in which 255 probably means a class, but is ignored."""
    rows = scan.having(BINARY)
    ignored = (dataset.labels.label_map or {}).get(IGNORE) == IGNORE
    if not ignored or not pixels[0] or pixels[1:].any():
        return []
    classes = dataset.labels.classes
    lost = classes[1] if len(classes) > 1 else "the other class"
    text = (
        f"masks contain only 0 and 255, and 255 is ignored, so class '{lost}' never occurs; map it "
        f"in data.yaml: label_map: {{0: {classes[0]}, 255: {lost}}}"
    )
    level: Level = "error" if len(classes) == 2 else "warning"
    return about(dataset, level, text, rows)


def _in_alpha(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Masks that are drawn in their alpha channel."""
    rows = scan.having(ALPHA)
    level: Level = "warning" if np.count_nonzero(pixels) > 1 else "error"
    return about(dataset, level, f"masks are {IN_ALPHA}", rows)


def _reordered(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Masks whose palettes order the same colours differently; a sample is read."""
    if dataset.labels.colour_map is not None or not isinstance(dataset.pairs, Pairs):
        return []
    sample = evenly_spaced(len(dataset), SAMPLED_PALETTES)
    try:
        if not are_reordered([mask for i in sample if (mask := dataset.pairs[i].mask)]):
            return []
    except SetrError:
        return []  # already reported
    text = (
        "palettes of the masks have the same colours in different orders, so an id can mean "
        "different classes; use the colours: colour_map in data.yaml (`setr init-data` drafts it)"
    )
    return [Finding("warning", dataset.split, text)]


def _all_ignored(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Masks without any labelled pixel."""
    rows = np.setdiff1d(scan.having(ALL_IGNORED), list(scan.problems))
    text = "masks are ignored everywhere and affect neither training nor scores"
    return about(dataset, "warning", text, rows)


def _duplicates(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Copies of an image in the split, only found by a full check; a file named twice is none."""
    read = np.flatnonzero(scan.content)
    _, first = np.unique(scan.content[read], return_index=True)
    again = np.setdiff1d(read, read[first])
    if len(again):
        named = {dataset.image_name(i) for i in read[first]}
        again = np.array([i for i in again if dataset.image_name(i) not in named], np.int64)
    text = "images are identical copies of an earlier one in the split"
    return about(dataset, "warning", text, again)


def _absent_classes(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Classes without a pixel, if others have some."""
    names = [c for c, n in zip(dataset.labels.classes, pixels, strict=True) if not n]
    if not names or not pixels.any():
        return []
    text = f"{len(names)} classes never occur: {first_few(names, SHOWN)}"
    return [Finding("warning", dataset.split, text, len(names))]


def _no_class(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Classes of training that are called like pixels without a label."""
    if not dataset.split.startswith("train"):
        return []
    named = zip(dataset.labels.classes, pixels, strict=True)
    names = [name for name, n in named if n and marks_no_class(name)]
    text = (
        "is a class, which is trained and counts in the scores; if it means pixels without a "
        "label, map its id or colour to ignore, and take it out of classes"
    )
    return [Finding("note", dataset.split, f"'{name}' {text}") for name in names]


def _notes(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """What was noticed when the data set was opened."""
    return [Finding("warning", dataset.split, note) for note in dataset.notes]


def _dark(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Images that are nearly black, often 12-bit values in 16-bit files."""
    rows = scan.having(DARK)
    text = (
        f"images are nearly black: all values are below {DIM} of 255; if they have 16 bits, "
        "give their range in data.yaml, for example bands: [1] and value_range: [0, 4095]"
    )
    return about(dataset, "warning", text, rows)


def _rotated(dataset: Dataset, scan: Survey, pixels: np.ndarray) -> list[Finding]:
    """Images that a viewer shows rotated."""
    rows = scan.having(ROTATED)
    text = "images have an EXIF rotation; it is applied, so masks must match the rotated image"
    return about(dataset, "note", text, rows)


_KINDS = (
    _single_class,
    _binary,
    _in_alpha,
    _notes,
    _reordered,
    _all_ignored,
    _duplicates,
    _absent_classes,
    _dark,
    _no_class,
    _rotated,
)
"""In the order in which they are reported; only the first three find errors."""
