"""Checks a data set before training.

`check` looks at one split and is what training runs first; `diagnose` looks at all splits of a data
set together and is what `setr doctor` shows. Problems are collected, not raised one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from setr.data.dataset import Dataset
from setr.data.pairs import Pairs
from setr.data.survey import Progress, near_hashes, survey
from setr.data.survey_rows import ALL_IGNORED, ALPHA, BINARY, DARK, DIM, ROTATED, Survey
from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.labels import IGNORE, Labels, hex_colour
from setr.reading.masks import IN_ALPHA, are_reordered

SHOWN = 10
PALETTES = 200
"""Masks of a split whose palettes are compared."""
NEAR_BITS = 3
"""Images whose 64-bit difference hashes differ in at most this many bits are nearly the same."""

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One kind of trouble.

    Attributes:
        level: an error stops training, a warning may spoil the figures, a note is for information.
        split: the split it is about.
        text: the problem, and what to do.
        count: number of files or classes.
        files: the first of these files.
    """

    level: Level
    split: str
    text: str
    count: int = 1
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkup:
    """What a check of one split found.

    Attributes:
        dataset: the split.
        problems: one line per broken pair, or about the split as a whole.
        pixels: (K,) counted pixels per class over the readable pairs.
        findings: all findings, errors first.
        survey: the rows behind it.
    """

    dataset: Dataset
    problems: tuple[str, ...]
    pixels: np.ndarray
    findings: tuple[Finding, ...]
    survey: Survey = field(repr=False)

    def raise_problems(self) -> None:
        """Raise one `SetrError` listing the first ten problems and their number, if any."""
        if self.problems:
            listed = "; ".join(self.problems[:SHOWN])
            more = f"; and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
            raise SetrError(
                f"{len(self.problems)} of {len(self.dataset)} pairs of split "
                f"'{self.dataset.split}' are unusable: {listed}{more}",
                code=DATA_CHECK_FAILED,
            )

    def require_counted(self, fix: str) -> None:
        """Raise one `SetrError`: that of `raise_problems`, or with a fix if no pixel counts."""
        self.raise_problems()
        if not self.pixels.any():
            raise SetrError(
                f"no pixel of split '{self.dataset.split}' of {self.dataset.name} counts: its "
                f"masks are ignored everywhere; {fix}",
                code=DATA_CHECK_FAILED,
            )


def check(dataset: Dataset, *, full: bool = False, progress: Progress | None = None) -> Checkup:
    """Look at every pair of a split: readable, whole, same size, ids inside the classes.

    What was looked at before and has not changed is not read again (see `survey.py`).

    Args:
        dataset: the split.
        full: decode the images too, instead of their header and end.
        progress: called with (done, total).
    """
    if not len(dataset):
        raise SetrError(
            f"split '{dataset.split}' of {dataset.name} has no images", code=DATA_CHECK_FAILED
        )
    seen = survey(dataset, full=full, progress=progress)
    pixels = seen.pixels(len(dataset.labels.classes))
    problems = [seen.problems[i] for i in sorted(seen.problems)]
    findings = []
    if problems:
        text = f"{len(problems)} of {len(dataset)} pairs are unusable"
        shown = tuple(problems[:SHOWN])
        findings.append(Finding("error", dataset.split, text, len(problems), shown))
    for finding in (
        *_alone(dataset),
        *_binary(dataset, seen, pixels),
        *_in_alpha(dataset, seen, pixels),
    ):
        findings.append(finding)
        if finding.level == "error":
            problems.append(finding.text)
    findings += [Finding("warning", dataset.split, note) for note in dataset.notes]
    findings += _reordered(dataset)
    findings += _ignored(dataset, seen)
    findings += _doubles(dataset, seen)
    findings += _absent(dataset, pixels)
    dark = seen.having(DARK)
    if len(dark):
        text = (
            f"images are nearly black: no value reaches {DIM} of 255; if they are of 16 bits, tell "
            "their range in data.yaml: bands: [1] and value_range: [0, 4095], for example"
        )
        findings.append(_about(dataset, "warning", text, dark))
    rotated = seen.having(ROTATED)
    if len(rotated):
        text = "images carry an EXIF rotation; it is applied, so masks must fit the image as shown"
        findings.append(_about(dataset, "note", text, rotated))
    return Checkup(dataset, tuple(problems), pixels, tuple(findings), seen)


def _about(dataset: Dataset, level: Level, text: str, rows: np.ndarray) -> Finding:
    files = tuple(str(dataset.pairs[int(i)].image) for i in rows[:SHOWN])
    return Finding(level, dataset.split, f"{len(rows)} {text}", len(rows), files)


def _alone(dataset: Dataset) -> list[Finding]:
    """A single class, with which every prediction is right."""
    if len(dataset.labels.classes) > 1:
        return []
    name = dataset.labels.classes[0]
    text = (
        f"'{name}' is the only class, so every answer is right; make the rest a class, too: "
        f"classes: [background, {name}], label_map: {{0: background, …}}"
    )
    return [Finding("error", dataset.split, text)]


def _binary(dataset: Dataset, seen: Survey, pixels: np.ndarray) -> list[Finding]:
    """Masks of 0 and 255 whose 255 was meant as a class, not as ignore."""
    rows = seen.having(BINARY)
    ignored = (dataset.labels.label_map or {}).get(IGNORE) == IGNORE
    if not len(rows) or not ignored or not pixels[0] or pixels[1:].any():
        return []
    classes = dataset.labels.classes
    lost = classes[1] if len(classes) > 1 else "the other class"
    text = (
        f"masks hold only 0 and 255, and 255 means ignore: class '{lost}' would vanish; map it in "
        f"data.yaml: label_map: {{0: {classes[0]}, 255: {lost}}}"
    )
    level: Level = "error" if len(classes) == 2 else "warning"
    return [_about(dataset, level, text, rows)]


def _in_alpha(dataset: Dataset, seen: Survey, pixels: np.ndarray) -> list[Finding]:
    """Masks whose labels are in the alpha channel."""
    rows = seen.having(ALPHA)
    level: Level = "warning" if np.count_nonzero(pixels) > 1 else "error"
    return [_about(dataset, level, f"masks are {IN_ALPHA}", rows)] if len(rows) else []


def _reordered(dataset: Dataset) -> list[Finding]:
    """Masks whose palettes order the same colours differently, in a sample of the files."""
    if dataset.labels.colour_map is not None or not isinstance(dataset.pairs, Pairs):
        return []
    some = np.linspace(0, len(dataset) - 1, min(len(dataset), PALETTES)).astype(int).tolist()
    try:
        if not are_reordered([mask for i in some if (mask := dataset.pairs[i].mask)]):
            return []
    except SetrError:
        return []  # unreadable masks are reported already
    text = (
        "palettes of the masks list the same colours in several orders, so an id means different "
        "classes; read the colours instead: colour_map in data.yaml (`setr init-data` drafts it)"
    )
    return [Finding("warning", dataset.split, text)]


def _ignored(dataset: Dataset, seen: Survey) -> list[Finding]:
    rows = np.setdiff1d(seen.having(ALL_IGNORED), list(seen.problems))
    if not len(rows):
        return []
    text = "masks are ignored everywhere; they affect neither training nor scores"
    return [_about(dataset, "warning", text, rows)]


def _doubles(dataset: Dataset, seen: Survey) -> list[Finding]:
    """Images that are in the split twice; found by a full check only."""
    read = np.flatnonzero(seen.content)
    _, first = np.unique(seen.content[read], return_index=True)
    again = np.setdiff1d(read, read[first])
    if not len(again):
        return []
    text = "images repeat an earlier one of the split, byte for byte"
    return [_about(dataset, "warning", text, again)]


def _absent(dataset: Dataset, pixels: np.ndarray) -> list[Finding]:
    names = [c for c, n in zip(dataset.labels.classes, pixels, strict=True) if not n]
    if not names or not pixels.any():
        return []
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    text = f"{len(names)} classes never occur: {shown}"
    return [Finding("warning", dataset.split, text, len(names))]


# --- across splits --------------------------------------------------------------------------------


def leaks(first: Checkup, second: Checkup) -> list[Finding]:
    """Images of the second split that the first one holds too, identical or nearly.

    Identical means the same bytes, by checksum and length; nearly identical means that the
    difference hashes agree but for a few bits. Both need a full check.
    """
    a, b = first.survey, second.survey
    between = f"{first.dataset.split} and {second.dataset.split}"
    same = np.flatnonzero(np.isin(b.content, a.content[a.content != 0]))
    found = []
    if len(same):
        text = f"images are in both {between}, byte for byte; remove them from one"
        found.append(_about(second.dataset, "warning", text, same))
    near = np.setdiff1d(near_hashes(a.look, b.look, NEAR_BITS), same)
    if len(near):
        text = f"images are nearly the same in {between} (video frames?); figures flatter then"
        found.append(_about(second.dataset, "warning", text, near))
    return found


def diagnose(checkups: Iterable[Checkup]) -> list[Finding]:
    """All findings of the splits of one data set, errors first, leaks between them included."""
    checkups = list(checkups)
    findings = [finding for checkup in checkups for finding in checkup.findings]
    for i, first in enumerate(checkups):
        for second in checkups[i + 1 :]:
            findings += leaks(first, second)
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def figures(checkup: Checkup) -> dict[str, Any]:
    """Sizes and classes of a split as plain values, for JSON and the page.

    Returns:
        `images`, `sizes` (the commonest, as "WxH": images), and per class `share` of the counted
        pixels, `images` it occurs in, and `weight` (median frequency).
    """
    names = checkup.dataset.labels.classes
    seen, pixels = checkup.survey, checkup.pixels
    readable = seen.size[seen.size[:, 0] > 0]
    sizes, counts = np.unique(readable, axis=0, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:SHOWN]
    weights = class_weights(pixels, "median_frequency", limit=np.inf)
    images = seen.images(len(names))
    return {
        "images": len(checkup.dataset),
        "unusable": len(seen.problems),
        "sizes": {f"{sizes[i][1]}x{sizes[i][0]}": int(counts[i]) for i in commonest},
        "other_sizes": max(len(sizes) - SHOWN, 0),
        "classes": {
            name: {
                "share": float(pixels[k] / max(pixels.sum(), 1)),
                "images": int(images[k]),
                "weight": round(float(weights[k]), 4),
            }
            for k, name in enumerate(names)
        },
    }


def describe_map(labels: Labels) -> str:
    """The map from ids (or colours) in the files to classes, in one line."""
    if labels.colour_map:
        raws = dict.fromkeys(labels.colour_map.values(), "")
        for colour, train in labels.colour_map.items():
            raws[train] += f" {hex_colour(colour)}"
    else:
        ids: dict[int, list[int]] = {}
        for raw, train in sorted((labels.label_map or {}).items()):
            ids.setdefault(train, []).append(raw)
        raws = {train: _ranges(listed) for train, listed in ids.items()}
    kept = [f"{labels.classes[t]} {raw.strip()}" for t, raw in raws.items() if t != IGNORE]
    shown = "; ".join(kept[: SHOWN * 3]) + ("; …" if len(kept) > SHOWN * 3 else "")
    kind = "colours" if labels.colour_map else "ids"
    ignored = raws.get(IGNORE, "none").strip()
    return f"{kind} in the masks: {shown}; ignored: {ignored}; any other is an error"


def _ranges(ids: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    groups: list[list[int]] = []
    for i in ids:
        if groups and i == groups[-1][1] + 1:
            groups[-1][1] = i
        else:
            groups.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in groups)


def class_weights(pixels: np.ndarray, kind: str, *, limit: float = 4.0) -> np.ndarray:
    """Class weights from pixel counts: median frequency / frequency, or its square root.

    Args:
        pixels: (K,) counts; a class that never occurs gets weight 1.
        kind: `median_frequency` (or `auto`), or `sqrt_median_frequency`.
        limit: largest weight.
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
