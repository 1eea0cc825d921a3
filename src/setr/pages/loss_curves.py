"""A run's losses in training and validation over its steps, read from its `log.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setr.pages.charts import svg
from setr.trackers import read_lines

Curve = Sequence[tuple[int, float]]
"""(step, loss), in order."""
LEFT, RIGHT, TOP, BOTTOM = 40, 680, 20, 180


def loss_curves(log: Path) -> str:
    """The main head's loss in training and on the validation split."""
    training, validation = [], []
    for line in read_lines(log):
        step, val = line["step"], line.get("val")
        if isinstance(val, dict):
            validation.append((step, val.get("loss")))
        else:
            training.append((step, line.get("main", line.get("loss"))))
    curves = {"training": _known(training), "validation": _known(validation)}
    if len(curves["training"]) < 2:
        return "<p>Too few steps for a curve.</p>"
    return loss_chart(curves)


def _known(points: Sequence[tuple[int, Any]]) -> list[tuple[int, float]]:
    """The points with a finite loss."""
    return [
        (step, float(loss))
        for step, loss in points
        if isinstance(loss, int | float) and math.isfinite(loss)
    ]


def loss_chart(curves: Mapping[str, Curve]) -> str:
    """Curves of losses over steps, by name, each in one of two colours; a few points are marked.

    Args:
        curves: one or two, the first with points at two steps or more; empty ones are left out.
    """
    shown = {name: curve for name, curve in curves.items() if curve}
    steps = [step for curve in shown.values() for step, _ in curve]
    first, last = min(steps), max(steps)
    high = max(loss for curve in shown.values() for _, loss in curve) or 1.0
    across, down = (RIGHT - LEFT) / max(last - first, 1), (BOTTOM - TOP) / high
    parts = [
        f'<line x1="{LEFT}" y1="{BOTTOM}" x2="{RIGHT}" y2="{BOTTOM}"/>'
        f'<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{BOTTOM}"/>'
    ]
    for number, (name, curve) in enumerate(shown.items()):
        colour = ("var(--accent)", "var(--second)")[number]
        points = [(LEFT + across * (step - first), BOTTOM - down * loss) for step, loss in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" style="stroke:{colour}"/>')
        if number:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
                      for x, y in points]  # fmt: skip
        height = TOP + 10 + 18 * number
        parts.append(f'<circle cx="{RIGHT - 96}" cy="{height}" r="4" fill="{colour}"/>'
                     f'<text x="{RIGHT - 86}" y="{height + 4}">{name}</text>')  # fmt: skip
    parts += [
        f'<text x="36" y="26" text-anchor="end">{high:{".1f" if high >= 1 else ".2g"}}</text>',
        '<text x="36" y="184" text-anchor="end">0</text>',
        f'<text x="680" y="200" text-anchor="end">step {last}</text>',
    ]
    return svg(700, 210, " and ".join(shown) + " loss over steps", parts)
