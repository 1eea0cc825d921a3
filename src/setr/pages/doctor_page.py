"""The page of `setr doctor --page`: one self-contained HTML file, no script, no outside request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from setr.bands import as_rgb
from setr.data.sampling import evenly_spaced
from setr.doctor import Checkup, Finding, describe_map, figures
from setr.errors import SetrError
from setr.pages.montage import fitted_size
from setr.pages.page import bar, dot, embedded, escape, table, write_page

THUMBNAILS = 12
"""Pairs shown per split, spread evenly over it."""
_WIDTH = 240  # of a thumbnail in pixels, at most


def write_checkups(
    path: Path, data: str, checkups: Sequence[Checkup], findings: Sequence[Finding]
) -> None:
    """Write the page; it appears under its name when complete."""
    errors = any(finding.level == "error" for finding in findings)
    parts = [f"<p>{'Training would refuse this data.' if errors else 'Ready to train.'}</p>"]
    parts += [_finding(finding) for finding in findings]
    if checkups:
        parts.append(f"<p>{escape(describe_map(checkups[0].dataset.labels))}</p>")
    for checkup in checkups:
        parts.append(f"<h2>{escape(checkup.dataset.split)}</h2>")
        parts += [_sizes(checkup), _classes(checkup), _thumbnails(checkup)]
    write_page(path, data, parts)


def _finding(finding: Finding) -> str:
    files = "".join(f"<code>{escape(file)}</code>" for file in finding.files)
    text = escape(f"{finding.split}: {finding.text}")
    return f'<div class="finding {finding.level}"><b>{finding.level}</b> {text}{files}</div>'


def _sizes(checkup: Checkup) -> str:
    values = figures(checkup)
    number, most = values["images"], max(values["sizes"].values(), default=0)
    rows = [
        [size, str(count), bar(count / number, full=most / number)]
        for size, count in values["sizes"].items()
    ]
    more = f"<p>and {values['other_sizes']} other sizes</p>" if values["other_sizes"] else ""
    return (
        f"<p>{number} images, {values['unusable']} unusable</p>"
        f"{table(['size', 'images', '% of the images'], rows)}{more}"
    )


def _classes(checkup: Checkup) -> str:
    labels, classes = checkup.dataset.labels, figures(checkup)["classes"]
    most = max((values["share"] for values in classes.values()), default=0) or 1
    rows = [
        [
            f"{dot(colour)}{escape(name)}",
            bar(values["share"], full=most, digits=3),
            str(values["images"]),
            f"{values['weight']:.2f}",
        ]
        for colour, (name, values) in zip(labels.colours, classes.items(), strict=True)
    ]
    return table(["class", "% of the pixels", "images", "weight"], rows)


def _thumbnails(checkup: Checkup) -> str:
    dataset = checkup.dataset
    shown = []
    for row in evenly_spaced(len(dataset), THUMBNAILS):
        name = dataset.image_name(row)
        try:
            image, mask = dataset.load(row)
        except SetrError as error:
            reason = escape(f"{name}: {error}")
            shown.append(f"<figure><figcaption>{reason}</figcaption></figure>")
            continue
        size = fitted_size(image, _WIDTH)
        image = cv2.resize(as_rgb(image), size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        both = np.concatenate((image, dataset.labels.palette[mask]))
        shown.append(embedded(both, name, photo=True))
    note = '<p class="note">Image above, classes below; black is ignored.</p>'
    return f'{note}<div class="grid">{"".join(shown)}</div>'
