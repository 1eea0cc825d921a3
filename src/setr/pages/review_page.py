"""The page of `setr review`: labels that look wrong, with pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from setr.labels import Labels
from setr.pages.page import (
    WRONG,
    dot,
    error_map,
    escape,
    failures,
    figure,
    legend,
    percent,
    table,
    tiles,
    write_page,
)
from setr.pages.review_tables import confused, problems
from setr.review import Review
from setr.scores.scored_images import ScoredImage
from setr.scores.suspects import Suspect

SHOWN = 24
"""Labels shown with pictures."""
DIMMED = 0.35
"""Brightness of the image outside suspicious regions."""


def write_review(path: Path, title: str, review: Review, labels: Labels) -> None:
    """Write the page; it appears under its name when complete."""
    suspects, classes = review.suspects, labels.classes
    whole = sum(suspect.is_elsewhere for suspect in suspects)
    regions = sum(len(suspect.regions) for suspect in suspects)
    facts = [
        (str(len(review.rows)), "images"),
        (str(len(suspects)), "labels look wrong"),
        (str(whole), "of them as a whole"),
        (str(regions), "suspicious regions"),
    ]
    parts = [
        tiles(facts),
        f'<p class="note">{escape(f"Protocol: {review.protocol}.")} The model may be wrong, too: '
        "look before you change a label.</p>",
    ]
    if not review.complete:
        parts.append("<p><b>The review was interrupted; some images are missing.</b></p>")
    parts.append(failures(review.failed))
    pairs = [
        [
            f"{dot(labels.colours[classes.index(p['given'])])}{escape(p['given'])} looks like "
            f"{dot(labels.colours[classes.index(p['predicted'])])}{escape(p['predicted'])}",
            str(p["images"]),
            str(p["regions"]),
            percent(p["share"], 2),
        ]
        for p in confused(review, classes)
    ]
    if pairs:
        head = ["labelled, and predicted", "images", "regions", "% of the class"]
        parts += ["<h2>Which classes are confused</h2>", table(head, pairs[:12])]
    shown = [suspect for suspect in suspects if suspect.number in review.pictures]
    if shown:
        masks = [review.pictures[suspect.number] for suspect in shown]
        seen = {int(i) for m in masks for ids in (m.truth, m.prediction) for i in np.unique(ids)}
        parts += ["<h2>The labels that look most wrong</h2>", legend(labels, sorted(seen))]
        parts += _pictured(review, shown, labels)
    rest = [suspect for suspect in suspects if suspect.number not in review.pictures]
    if rest:
        rows = []
        for suspect in rest[:200]:
            listed = "<br>".join(map(escape, problems(suspect, classes)))
            rows.append([escape(suspect.looked.name), _quality(suspect), listed])
        parts += ["<h2>Others</h2>", table(["image", "quality", "what looks wrong"], rows, (1,))]
    write_page(path, title, parts)


def _quality(suspect: Suspect) -> str:
    quality = suspect.looked.quality
    return "n/a" if quality is None else f"{quality:.4f}"


def _pictured(review: Review, shown: list[Suspect], labels: Labels) -> Iterator[str]:
    for suspect in shown:
        picture = review.pictures[suspect.number]
        listed = "".join(f"<li>{escape(t)}</li>" for t in problems(suspect, labels.classes))
        yield (
            f"<h3>{escape(suspect.looked.name)}: quality {_quality(suspect)}</h3><ul>{listed}</ul>"
            '<div class="grid">'
            + figure(picture.image, "image", photo=True)
            + figure(labels.palette[picture.truth], "label")
            + figure(labels.palette[picture.prediction], "prediction")
            + _contradictions(picture, suspect)
            + "</div>"
        )


def _contradictions(picture: ScoredImage, suspect: Suspect) -> str:
    """Suspicious regions; of a label that is displaced, all pixels that differ."""
    if suspect.is_elsewhere:
        return figure(error_map(picture.prediction, picture.truth), "contradictions")
    return figure(_highlighted(picture, suspect), "suspicious", photo=True)


def _highlighted(picture: ScoredImage, suspect: Suspect) -> np.ndarray:
    """The image uint8 RGB (H, W, 3), dark except for the contradictions in suspicious regions."""
    H, W = picture.truth.shape
    image = picture.image
    bright = np.zeros((H, W), bool)
    boxes = [_scaled(region, suspect.looked.size, (H, W)) for region in suspect.regions]
    for region, (top, bottom, left, right) in zip(suspect.regions, boxes, strict=True):
        inside = np.s_[top:bottom, left:right]
        contradicted = picture.truth[inside] != picture.prediction[inside]
        bright[inside] |= contradicted & (picture.prediction[inside] == region["predicted"])
    shown = np.where(bright[..., None], image, image * DIMMED).astype(np.uint8)
    for top, bottom, left, right in boxes:
        cv2.rectangle(shown, (left, top), (right - 1, bottom - 1), WRONG, 1)
    return shown


def _scaled(
    region: np.void, size: tuple[int, ...], small: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The box of a region (top, bottom, left, right) in a shrunk image (H, W)."""
    down, right = (b / a for a, b in zip(size, small, strict=True))
    top, left = int(region["top"] * down), int(region["left"] * right)
    bottom = max(top + 1, round((region["top"] + region["height"]) * down))
    end = max(left + 1, round((region["left"] + region["width"]) * right))
    return top, bottom, left, end
