"""Charts as inline SVG, in the colours of `page.html`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from setr.pages.page import escape, figure, heat, percent

DRAWN = 40
"""Up to this many classes the confusion matrix is drawn with names; beyond, as a picture."""
NAMED = 28
"""Columns of text that a name has in it; longer ones are cut."""


def confusion_chart(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """A confusion matrix, each row divided by its truth pixels.

    Args:
        matrix: (K, K+1) counts, truth in rows; the last column holds foreign ids.
        classes: K names.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if not matrix[:, -1].any():
        shares = shares[:, :-1]
    if len(classes) > DRAWN:
        cell = max(1, min(4, 900 // shares.shape[1]))
        picture = heat(np.sqrt(shares)).repeat(cell, axis=0).repeat(cell, axis=1)
        return figure(picture, "rows: truth, columns: prediction; square root of the row's share",
                      width=900)  # fmt: skip
    cell = 34 if len(classes) <= 20 else 20
    names = [*classes, "other"][: shares.shape[1]]
    shown = [_short(name) for name in names]
    left = 8 + 7 * max(map(cell_len, shown[: len(classes)]))
    top = 8 + 6 * max(map(cell_len, shown))
    parts = []
    for row, name in enumerate(classes):
        y = top + row * cell
        parts.append(f'<text x="{left - 6}" y="{y + cell * 0.62:.0f}" text-anchor="end">'
                     f"{escape(shown[row])}</text>")  # fmt: skip
        for column, share in enumerate(shares[row]):
            x = left + column * cell
            kind = "cell" if column == row else "over"
            title = f"{name} predicted as {names[column]}: {percent(share)} %"
            parts.append(
                f'<g><title>{escape(title)}</title><rect class="axis" x="{x}" y="{y}" '
                f'width="{cell}" height="{cell}"/><rect class="{kind}" x="{x}" y="{y}" '
                f'width="{cell}" height="{cell}" fill-opacity="{share:.3f}"/>'
            )
            if cell > 30 and share >= 0.005:
                tone = ' class="on"' if share > 0.55 else ""
                parts.append(f'<text{tone} x="{x + cell / 2}" y="{y + cell * 0.62:.0f}" '
                             f'text-anchor="middle">{100 * share:.0f}</text>')  # fmt: skip
            parts.append("</g>")
    for column, name in enumerate(shown):
        place = left + (column + 0.62) * cell
        parts.append(f'<text transform="translate({place:.0f},{top - 6}) rotate(-55)">'
                     f"{escape(name)}</text>")  # fmt: skip
    width, height = left + cell * len(names) + top * 0.8, top + cell * len(classes) + 4
    return svg(width, height, "confusion matrix", parts, natural=True)


def _short(name: str) -> str:
    """A name with room beside the cells; a cell's title has the whole."""
    whole = cell_len(name) <= NAMED
    return name if whole else set_cell_size(name, NAMED - 1).rstrip() + "…"


def reliability_chart(calibration: dict[str, Any]) -> str:
    """Accuracy over confidence, with the share of pixels in each bin below."""
    size, left, top = 300, 46, 12
    bins = len(calibration["pixels"])
    total, largest = sum(calibration["pixels"]), max(calibration["pixels"])
    width = size / bins
    parts = []
    for i, (pixels, accuracy, confidence) in enumerate(
        zip(calibration["pixels"], calibration["accuracy"], calibration["confidence"], strict=True)
    ):
        if accuracy is None:
            continue
        low, high = sorted((accuracy, confidence))
        share = 60 * pixels / largest
        title = (
            f"confidence {percent(confidence)} %, accuracy {percent(accuracy)} %, "
            f"{percent(pixels / total)} % of the pixels"
        )
        x = left + i * width + 1
        parts.append(
            f"<g><title>{title}</title>"
            + _rect("cell", x, top + size * (1 - low), width - 2, size * low)
            + _rect("over", x, top + size * (1 - high), width - 2, size * (high - low))
            + _rect("cell", x, top + size + 100 - share, width - 2, share)
            + "</g>"
        )
    parts.append(f'<line x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>')
    for value in (0, 0.5, 1):
        x, y = left + size * value, top + size * (1 - value)
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{100 * value:.0f}</text>')
        parts.append(f'<text x="{x}" y="{top + size + 16}" text-anchor="middle">'
                     f"{100 * value:.0f}</text>")  # fmt: skip
    middle = left + size / 2
    parts += [
        f'<rect class="axis" x="{left}" y="{top}" width="{size}" height="{size}"/>',
        f'<text x="{middle}" y="{top + size + 32}" text-anchor="middle">confidence in %</text>',
        f'<text transform="translate(14,{top + size / 2}) rotate(-90)" text-anchor="middle">'
        "accuracy in %</text>",
        f'<text x="{middle}" y="{top + size + 116}" text-anchor="middle">share of the pixels'
        "</text>",
    ]
    return svg(left + size + 20, top + size + 124, "reliability diagram", parts, natural=True)


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def svg(
    width: float, height: float, label: str, parts: Sequence[str], *, natural: bool = False
) -> str:
    """An SVG element, as wide as the page or at its natural width."""
    how = f'width="{width:.0f}"' if natural else 'class="full"'
    return (
        f'<svg {how} viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )
