"""The result of `setr review` as text, JSON and CSV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setr.reading.files import one_line
from setr.review import Review
from setr.scores.suspects import Suspect
from setr.writing import write_rows

LISTED = 10
"""Labels shown in the terminal, and pairs of classes."""
NAMED = 3
"""Regions of a label named in one line."""


def as_json(review: Review, classes: Sequence[str]) -> dict[str, Any]:
    """What `review.json` holds; fractions are 0 to 1, lengths are pixels."""
    return {
        "complete": review.complete,
        "images": len(review.rows),
        "protocol": review.protocol,
        "failed": review.failed,
        "thresholds": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(classes, review.thresholds, strict=True)
        },
        "confused": list(confused(review, classes)),
        "suspects": [
            {
                "image": suspect.looked.name,
                "quality": suspect.looked.quality,
                "agreement": suspect.looked.agreement,
                "findings": [
                    {"kind": kind, "text": text, **values}
                    for kind, text, values in suspect.findings
                ],
                "regions": [_region(region, classes) for region in suspect.regions],
            }
            for suspect in review.suspects
        ],
    }


def _region(region: Any, classes: Sequence[str]) -> dict[str, Any]:
    names = {key: classes[region[key]] for key in ("given", "predicted")}
    lengths = {key: int(region[key]) for key in ("pixels", "left", "top", "width", "height")}
    shares = {key: round(float(region[key]), 4) for key in ("confidence", "likelihood")}
    return names | lengths | shares


def confused(review: Review, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Pairs of classes by the pixels of their regions, the largest first.

    Labels that are displaced as a whole are left out.

    Yields:
        `given` and `predicted` class, number of `images`, `regions` and `pixels`, and their `share`
        of the pixels labelled as the given class.
    """
    sums: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(3, np.int64))
    for suspect in review.suspects:
        if suspect.is_elsewhere:
            continue
        pairs = [(int(r["given"]), int(r["predicted"])) for r in suspect.regions]
        for pair, region in zip(pairs, suspect.regions, strict=True):
            sums[pair] += (0, 1, int(region["pixels"]))
        for pair in set(pairs):
            sums[pair][0] += 1
    for (given, predicted), counts in sorted(sums.items(), key=lambda item: -item[1][2]):
        images, regions, pixels = (int(n) for n in counts)
        yield {
            "given": classes[given],
            "predicted": classes[predicted],
            "images": images,
            "regions": regions,
            "pixels": pixels,
            "share": pixels / int(review.pixels[given]),
        }


def problems(suspect: Suspect, classes: Sequence[str]) -> list[str]:
    """What looks wrong about a label, a line each; regions beyond `NAMED` in one.

    If the whole label is displaced, regions are only its consequences.
    """
    lines = [finding.text for finding in suspect.findings]
    if suspect.is_elsewhere:
        return lines
    for region in suspect.regions[:NAMED]:
        given, predicted = (classes[region[key]] for key in ("given", "predicted"))
        lines.append(
            f"{given} looks like {predicted}: {region['pixels']} px around x={_middle(region, 0)} "
            f"y={_middle(region, 1)} (confidence {100 * region['confidence']:.0f} %)"
        )
    more = suspect.regions[NAMED:]["pixels"]
    if len(more):
        lines.append(f"and {len(more)} more region{'s' * (len(more) > 1)}, {more.sum()} px")
    return lines


def _middle(region: Any, axis: int) -> int:
    """The middle of a region's box along x (0) or y (1)."""
    start, length = (("left", "width"), ("top", "height"))[axis]
    return int(region[start]) + int(region[length]) // 2


def review_text(review: Review, classes: Sequence[str]) -> str:
    """The worst labels and the pairs of confused classes, for the terminal."""
    lines = []
    for suspect in review.suspects[:LISTED]:
        quality = suspect.looked.quality
        shown = "  n/a  " if quality is None else f"{quality:<7.4f}"
        lines.append(one_line(f"{shown} {suspect.looked.name}"))
        lines += [one_line(f"        {line}") for line in problems(suspect, classes)]
    pairs = list(confused(review, classes))[:LISTED]
    if pairs:
        lines += ["", "regions labelled one class that look like another:"]
    for pair in pairs:
        images, regions = (
            f"{pair[key]} {key[:-1]}{'s' * (pair[key] != 1)}" for key in ("images", "regions")
        )
        lines.append(
            one_line(
                f"  {pair['given']} → {pair['predicted']}: {regions} in {images}, "
                f"{100 * pair['share']:.2g} % of {pair['given']}"
            )
        )
    count, total = len(review.suspects), len(review.rows)
    lines += ["", f"{count} of {total} labels look wrong in a part or as a whole"]
    return "\n".join(lines).lstrip("\n")


def write_csv(path: Path, review: Review) -> None:
    """Write a line per image: suspects first, then all others by quality."""
    suspects = {suspect.number: suspect for suspect in review.suspects}
    others = sorted(
        (number for number in review.rows if number not in suspects),
        key=lambda number: (review.rows[number].quality is None, review.rows[number].quality or 0),
    )
    rows: list[tuple[object, ...]] = [
        ("image", "quality", "agreement", "findings", "regions", "region_pixels")
    ]
    for number in (*suspects, *others):
        row, found = review.rows[number], suspects.get(number)
        kinds = " ".join(f.kind for f in found.findings) if found else ""
        pixels = found.regions["pixels"] if found else np.empty(0, int)
        figures = ("" if v is None else f"{v:.6g}" for v in (row.quality, row.agreement))
        rows.append((row.name, *figures, kinds, len(pixels), pixels.sum()))
    write_rows(path, rows)
