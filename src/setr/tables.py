"""Figures as text columns for the terminal."""

from __future__ import annotations

import sys
from typing import Any

from setr.errors import FAILED, OK


def figures_table(metrics: dict[str, Any]) -> str:
    """Per-class IoU and the means of each protocol, in percent.

    Args:
        metrics: `single_scale`, `multi_scale`, … each as `evaluate` returns it; other keys are
            left out.
    """
    columns = {k: v for k, v in metrics.items() if isinstance(v, dict) and "iou" in v}
    names = list(next(iter(columns.values()))["iou"])
    width = max(map(len, [*names, *_MEANS.values()]))

    space = max(14, *(len(k) + 2 for k in columns))

    def row(label: str, values: list[float | None]) -> str:
        shown = ["n/a" if v is None else f"{100 * v:.2f}" for v in values]
        return f"{label:<{width}}" + "".join(f"{v:>{space}}" for v in shown)

    lines = [f"{'IoU in %':<{width}}" + "".join(f"{k.replace('_', ' '):>{space}}" for k in columns)]
    lines += [row(name, [c["iou"][name] for c in columns.values()]) for name in names]
    lines.append("-" * len(lines[0]))
    lines += [
        row(label, [_at(c, key) for c in columns.values()])
        for key, label in _MEANS.items()
        if any(_at(c, key) is not None for c in columns.values())
    ]
    return "\n".join(lines + _notes(next(iter(columns.values()))))


_MEANS = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "freq. weighted",
    "image_miou": "mIoU per image",
    "boundary.iou": "boundary IoU",
    "boundary.f": "boundary F",
    "calibration.ece": "calibr. error",
}


def _at(figures: dict[str, Any], path: str) -> Any:
    """A value by dotted path, None where it is missing."""
    value: Any = figures
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _notes(figures: dict[str, Any]) -> list[str]:
    notes = []
    interval = _at(figures, "intervals.miou")
    if interval:
        low, high = (f"{100 * v:.2f}" for v in interval)
        notes.append(f"mIoU 95 % interval: {low} to {high} (bootstrap over images)")
    absent = [name for name, value in figures["iou"].items() if value is None]
    if absent:
        rule = {
            "skip": "left out of the means (mmseg, Cityscapes); --absent zero counts them as 0",
            "zero": "counted as 0 in the means (ADE20K server); --absent skip leaves them out",
        }[figures["absent"]]
        notes.append(f"{len(absent)} of {len(figures['iou'])} classes do not occur: {rule}")
    return notes


def report_failed(figures: dict[str, Any]) -> int:
    """Name the images that could not be read on stderr; the exit code that goes with them."""
    for problem in figures["failed"]:
        print(f"setr: {' '.join(problem.split())}", file=sys.stderr)
    if not figures["failed"]:
        return OK
    total = figures["images"] + len(figures["failed"])
    print(f"setr: {len(figures['failed'])} of {total} images failed and are in no figure",
          file=sys.stderr)  # fmt: skip
    return FAILED
