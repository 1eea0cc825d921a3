"""Figures of groups of images, and of differences between models, as text and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setr.pages.tables import difference_text
from setr.writing import write_rows

_KEYS = ("dice", "iou")
"""Figures by class."""


def group_lines(figures: dict[str, Any]) -> list[str]:
    """The mean Dice of each class over the groups, with intervals, in percent; empty without any.

    Args:
        figures: as `evaluate_split` returns them.
    """
    if "groups" not in figures:
        return []
    groups = figures["groups"]
    lines = [f"Dice of the average group ({groups['by']}, {len(groups['each'])} groups):"]
    for name, dice in groups["dice"].items():
        if dice["mean"] is None:
            lines.append(f"  {name}: n/a, in no group")
            continue
        text = f"  {name}: {100 * dice['mean']:.2f}"
        if dice["interval"]:
            low, high = (f"{100 * v:.2f}" for v in dice["interval"])
            text += f" (95 % interval {low} to {high}, {dice['groups']} groups)"
        lines.append(text)
    return lines


def difference_lines(models: str, against: dict[str, Any]) -> list[str]:
    """Differences of two models on the same images or groups, with p-values.

    Args:
        models: `A against B`.
        against: of `paired_difference` or `paired_groups`.
    """
    unit = "group" if "groups" in against else "image"

    def line(what: str, found: dict[str, Any]) -> str:
        count = found[f"{unit}s"]
        return (
            f"{models}: {difference_text(found)} {what} per {unit} "
            f"(p = {found['p']:.4f}, {count} {unit}{'s' * (count != 1)})"
        )

    by_class = against.get("dice", {}).items()
    return [line("mIoU", against), *(line(f"Dice of {name}", found) for name, found in by_class)]


def write_groups(path: Path, figures: dict[str, Any]) -> None:
    """Write `group,images,miou` with Dice and IoU of each class, a line per group.

    Without groups, a file of an earlier test is removed.
    """
    if "groups" not in figures:
        path.unlink(missing_ok=True)
        return
    groups = figures["groups"]
    columns = [(key, name) for key in _KEYS for name in groups[key]]
    head = ("group", "images", "miou", *(f"{key} {name}" for key, name in columns))
    rows = (
        (group, row["images"], row["miou"], *(row[key][name] for key, name in columns))
        for group, row in groups["each"].items()
    )
    write_rows(path, [head, *rows])
