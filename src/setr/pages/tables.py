"""Figures as text columns for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from setr.errors import FAILED, OK
from setr.processes.standard_streams import tell

WORTH = 0.005
"""A gain of Dice that another threshold is named for."""


def figures_table(metrics: dict[str, Any]) -> str:
    """Figures of each class and their means, in percent.

    One protocol is shown with IoU, Dice, recall and precision, several with the IoU of each.

    Args:
        metrics: `single_scale`, `multi_scale`, … each as `evaluate` returns it; other keys are
            left out.
    """
    protocols = by_protocol(metrics)
    first = next(iter(protocols.values()))
    if len(protocols) == 1:
        by_class = {label: first.get(key, {}) for key, label in _BY_CLASS.items()}
    else:
        by_class = {k.replace("_", " "): v["iou"] for k, v in protocols.items()}
    names, corner = list(first["iou"]), "in %" if len(protocols) == 1 else "IoU in %"
    width = max(map(cell_len, [*names, *_MEANS.values()]))
    space = max(12 if len(protocols) == 1 else 14, *(len(k) + 2 for k in by_class))

    def row(label: str, values: list[float | None]) -> str:
        shown = ["n/a" if v is None else f"{100 * v:.2f}" for v in values]
        return set_cell_size(label, width) + "".join(f"{v:>{space}}" for v in shown)

    lines = [f"{corner:<{width}}" + "".join(f"{k:>{space}}" for k in by_class)]
    lines += [row(name, [column.get(name) for column in by_class.values()]) for name in names]
    lines.append("-" * len(lines[0]))
    lines += [
        row(label, [_at(figures, key) for figures in protocols.values()])
        for key, label in _MEANS.items()
        if any(_at(figures, key) is not None for figures in protocols.values())
    ]
    return "\n".join(lines + _notes(first))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(set_cell_size, row, widths)).rstrip() for row in rows]


def by_protocol(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures in `metrics.json` of each protocol, by its name."""
    return {k: v for k, v in metrics.items() if isinstance(v, dict) and "iou" in v}


_BY_CLASS = {"iou": "IoU", "dice": "Dice", "accuracy": "recall", "precision": "precision"}
_MEANS = {
    "miou": "mIoU",
    "mean_dice": "mean Dice",
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "freq. weighted",
    "kappa": "Cohen's kappa",
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
        unit = "groups" if "groups" in figures else "images"
        notes.append(f"mIoU 95 % interval: {low} to {high} (bootstrap over {unit})")
    if curve := figures.get("thresholds"):
        best, own = curve["best"], figures["dice"][curve["class"]] or 0
        if best["dice"] > own + WORTH:
            shown = (f"{key} {100 * best[key]:.2f}" for key in ("precision", "recall"))
            notes.append(
                f"{curve['class']} has its best Dice here, {100 * best['dice']:.2f} "
                f"({', '.join(shown)}), at threshold {best['threshold']:.2f}: `setr adjust … "
                f"--threshold {best['threshold']:.2f}`"
            )
    absent = [name for name, value in figures["iou"].items() if value is None]
    if absent:
        rule = {
            "skip": "left out of the means (mmseg, Cityscapes); --absent zero counts them as 0",
            "zero": "counted as 0 in the means (ADE20K server); --absent skip leaves them out",
        }[figures["absent"]]
        notes.append(f"{len(absent)} of {len(figures['iou'])} classes do not occur: {rule}")
    counts = figures.get("confusion", [])
    if foreign := sum(row[-1] for row in counts):
        share = f"{100 * foreign / sum(map(sum, counts)):.2f} %"
        notes.append(f"predicted ids of {share} of the pixels are no class, and count as wrong")
    return notes


def difference_text(against: dict[str, Any]) -> str:
    """A `paired_difference` of fractions in points, with its interval if it has one."""
    text = f"{100 * against['difference']:+.2f}"
    if not against["interval"]:
        return text
    low, high = (f"{100 * v:+.2f}" for v in against["interval"])
    return f"{text} (95 % interval {low} to {high})"


def report_failed(figures: dict[str, Any]) -> int:
    """Print the images that could not be read to stderr; returns the exit code."""
    for problem in figures["failed"]:
        tell(f"setr: {' '.join(problem.split())}")
    if not figures["failed"]:
        return OK
    total = figures["images"] + len(figures["failed"])
    tell(f"setr: {len(figures['failed'])} of {total} images failed and are in no figure")
    return FAILED
