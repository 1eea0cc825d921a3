"""Checks a data set before training.

`check` examines one split, as training does first; `diagnose` examines all splits of a data set
together, as `setr doctor` does. Problems are collected instead of raised one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from setr.colours import hex_colour
from setr.data.dataset import Dataset
from setr.data.findings import SHOWN, Finding, about, split_findings
from setr.data.survey import Progress, near_hashes, survey
from setr.data.survey_rows import Survey
from setr.errors import DataError, first_few, joined_problems
from setr.labels import IGNORE, Labels
from setr.training.weighting import class_weights

NEAR_BITS = 3
"""Images are near-duplicates if their 64-bit difference hashes differ in at most these bits."""

RARE = 0.1
"""Share of the pixels, relative to that of an even distribution, up to which a class is rare."""
NEEDED = ("train", "val")
"""Splits that training needs labelled: weights are chosen by their scores on `val`."""


@dataclass(frozen=True)
class Checkup:
    """Result of checking one split.

    Attributes:
        dataset: the split.
        problems: errors, one line per unusable pair or about the whole split.
        pixels: (K,) pixels per class in the readable pairs.
        findings: all findings, errors first.
        survey: what was read of each pair.
    """

    dataset: Dataset
    problems: tuple[str, ...]
    pixels: np.ndarray
    findings: tuple[Finding, ...]
    survey: Survey = field(repr=False)

    def raise_problems(self) -> None:
        """Raise one `SetrError` with the first ten problems and their number, if any."""
        if self.problems:
            which, pairs = f"split '{self.dataset.split}'", len(self.survey.problems)
            if pairs:
                what = f"{pairs} of {len(self.dataset)} pairs of {which} are unusable"
            else:
                what = f"{which} of {self.dataset.name} is unusable"
            raise DataError(f"{what}: {joined_problems(self.problems)}")

    def require_counted(self, fix: str) -> None:
        """As `raise_problems`; if all pixels are ignored, raise an error that ends with `fix`."""
        self.raise_problems()
        if not self.pixels.any():
            raise DataError(
                f"all mask pixels of split '{self.dataset.split}' of {self.dataset.name} are "
                f"ignored; {fix}"
            )


def check(dataset: Dataset, *, full: bool = False, progress: Progress | None = None) -> Checkup:
    """Check every pair of a split: readable, complete, of the same size, with known ids.

    Unchanged files that were checked before are not read again (see `survey.py`).

    Args:
        full: decode the images, too; otherwise only their header and end are read.
        progress: called with (done, total).

    Raises:
        SetrError: the split has no images.
    """
    if not len(dataset):
        raise DataError(f"split '{dataset.split}' of {dataset.name} has no images")
    scan = survey(dataset, full=full, progress=progress)
    pixels = scan.pixels(len(dataset.labels.classes))
    findings = split_findings(dataset, scan, pixels)
    unusable = [scan.problems[i] for i in sorted(scan.problems)]
    problems = unusable + [finding.text for finding in findings if finding.level == "error"]
    if unusable:
        text = f"{len(unusable)} of {len(dataset)} pairs are unusable"
        shown = tuple(unusable[:SHOWN])
        findings.insert(0, Finding("error", dataset.split, text, len(unusable), shown))
    return Checkup(dataset, tuple(problems), pixels, tuple(findings), scan)


def leaks(first: Checkup, second: Checkup) -> list[Finding]:
    """Images of the second split that are also in the first, identical or nearly identical.

    Identical files have the same checksum and length; nearly identical images have difference
    hashes that differ in few bits. Both need a full check.
    """
    a, b = first.survey, second.survey
    between = f"{first.dataset.split} and {second.dataset.split}"
    same = np.flatnonzero(np.isin(b.content, a.content[a.content != 0]))
    text = f"images are in both {between}, byte for byte; remove them from one"
    found = about(second.dataset, "warning", text, same)
    near = np.setdiff1d(near_hashes(a.look, b.look, NEAR_BITS), same)
    text = f"images are nearly the same in {between} (video frames?); scores will be too high"
    return found + about(second.dataset, "warning", text, near)


def map_a_class(role: str) -> str:
    """What to do if all pixels of the `train` or `val` split are ignored."""
    return (
        "map ids or colours of the masks to classes, in label_map or colour_map of data.yaml, or "
        f"name another split with --data.{role}-split"
    )


def diagnose(checkups: Iterable[Checkup]) -> list[Finding]:
    """All findings in the splits of one data set, errors first, with leaks between splits."""
    checkups = list(checkups)
    findings = [finding for checkup in checkups for finding in checkup.findings]
    findings += [
        Finding("error", split, f"all mask pixels are ignored; {map_a_class(split)}")
        for split in NEEDED
        for checkup in checkups
        if checkup.dataset.split == split and not checkup.problems and not checkup.pixels.any()
    ]
    findings += [found for checkup in checkups for found in _rare_classes(checkup)]
    for i, first in enumerate(checkups):
        for second in checkups[i + 1 :]:
            findings += leaks(first, second)
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def _rare_classes(checkup: Checkup) -> list[Finding]:
    """Classes of training with a tenth of an even share of the pixels or less."""
    names, pixels = checkup.dataset.labels.classes, checkup.pixels
    even = pixels.sum() / len(names)
    rare = [k for k in np.argsort(pixels, kind="stable") if 0 < pixels[k] <= RARE * even]
    if not rare or not checkup.dataset.split.startswith("train"):
        return []
    images = checkup.survey.images(len(names))
    shown = [
        f"{names[k]} ({100 * pixels[k] / pixels.sum():.2g} % of the pixels, {images[k]} images)"
        for k in rare
    ]
    text = (
        f"rare classes: {first_few(shown, SHOWN)}; what helps: "
        "--data.rare-class-crops 0.5, --data.repeat-rare 0.1, --train.class-weights auto, or "
        "--train.loss"
    )
    return [Finding("note", checkup.dataset.split, text, len(rare))]


def figures(checkup: Checkup) -> dict[str, Any]:
    """Statistics of a split for the report, JSON-serialisable.

    Returns:
        Number of `images` and `unusable` ones, `sizes` (images by "WxH", for the most frequent),
        the number of `other_sizes`, and for each of `classes` its `share` of the labelled pixels,
        the `images` it occurs in, and its `weight` (median frequency).
    """
    names = checkup.dataset.labels.classes
    scan, pixels = checkup.survey, checkup.pixels
    readable = scan.size[scan.size[:, 0] > 0]
    sizes, counts = np.unique(readable, axis=0, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:SHOWN]
    weights = class_weights(pixels, "median_frequency", limit=np.inf)
    images = scan.images(len(names))
    return {
        "images": len(checkup.dataset),
        "unusable": len(scan.problems),
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
    """The mapping from ids (or colours) in the masks to classes, in one line."""
    if labels.colour_map:
        raws = dict.fromkeys(labels.colour_map.values(), "")
        for colour, train in labels.colour_map.items():
            raws[train] += f" {hex_colour(colour)}"
    else:
        ids: dict[int, list[int]] = {}
        for raw, train in sorted((labels.label_map or {}).items()):
            ids.setdefault(train, []).append(raw)
        raws = {train: _ranges(values) for train, values in ids.items()}
    kept = [f"{labels.classes[t]}: {raw.strip()}" for t, raw in raws.items() if t != IGNORE]
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
