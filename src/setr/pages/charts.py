"""Charts as inline SVG, in the colours of `page.html`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len

from setr.pages.page import escape, figure, heat, percent

DRAWN = 40
"""Up to this many classes the confusion matrix is drawn with names; beyond, as a picture."""


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
        picture = heat(np.sqrt(shares)).repeat(4, axis=0).repeat(4, axis=1)
        return figure(picture, "rows: truth, columns: prediction; square root of the row's share",
                      width=900)  # fmt: skip
    cell = 34 if len(classes) <= 20 else 20
    names = [*classes, "other"][: shares.shape[1]]
    left = 8 + 7 * max(map(cell_len, classes))
    top = 8 + 6 * max(map(cell_len, names))
    parts = []
    for row, name in enumerate(classes):
        y = top + row * cell
        parts.append(f'<text x="{left - 6}" y="{y + cell * 0.62:.0f}" text-anchor="end">'
                     f"{escape(name)}</text>")  # fmt: skip
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
    for column, name in enumerate(names):
        place = left + (column + 0.62) * cell
        parts.append(f'<text transform="translate({place:.0f},{top - 6}) rotate(-55)">'
                     f"{escape(name)}</text>")  # fmt: skip
    width, height = left + cell * len(names) + top * 0.8, top + cell * len(classes) + 4
    return svg(width, height, "confusion matrix", parts, natural=True)


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


def line_chart(curves: dict[str, list[tuple[float, float]]], x_name: str, y_name: str) -> str:
    """Up to two curves of (x, y) from the origin, marked and named; with its own colours."""
    right = max(x for curve in curves.values() for x, _ in curve)
    high = max(y for curve in curves.values() for _, y in curve)
    parts = [
        "<style>text{font:12px system-ui,sans-serif;fill:#777}"
        "line{stroke:#888}polyline{fill:none;stroke-width:2}</style>",
        '<line x1="60" y1="250" x2="600" y2="250"/><line x1="60" y1="20" x2="60" y2="250"/>',
        f'<text x="330" y="288" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(14,135) rotate(-90)" text-anchor="middle">{escape(y_name)}'
        "</text>",
        f'<text x="54" y="26" text-anchor="end">{high:,.0f}</text>',
        '<text x="54" y="254" text-anchor="end">0</text>',
    ]
    parts += [
        f'<text x="{60 + 520 * x / right:.0f}" y="268" text-anchor="middle">{x:g}</text>'
        for x in sorted({x for curve in curves.values() for x, _ in curve})
    ]
    for number, (name, curve) in enumerate(curves.items()):
        tone = ("#0072b2", "#d55e00")[number]
        points = [(60 + 520 * x / right, 250 - 228 * y / high) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" stroke="{tone}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{tone}"/>' for x, y in points]
        parts.append(f'<circle cx="76" cy="{30 + 20 * number}" r="4" fill="{tone}"/>'
                     f'<text x="86" y="{34 + 20 * number}">{escape(name)}</text>')  # fmt: skip
    chart = svg(620, 300, escape(f"{y_name} over {x_name}"), parts, natural=True)
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


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
