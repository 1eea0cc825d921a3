"""Figures as text columns for the terminal."""

from __future__ import annotations

from typing import Any


def figures_table(metrics: dict[str, Any]) -> str:
    """Per-class IoU and the means of each protocol, in percent.

    Args:
        metrics: `single_scale`, `multi_scale`, … each as `evaluate` returns it; other keys are
            left out.
    """
    columns = {k: v for k, v in metrics.items() if isinstance(v, dict) and "iou" in v}
    names = list(next(iter(columns.values()))["iou"])
    width = max(map(len, [*names, "mean accuracy"]))

    def row(label: str, values: list[float | None]) -> str:
        shown = ["n/a" if v is None else f"{100 * v:.2f}" for v in values]
        return f"{label:<{width}}" + "".join(f"{v:>14}" for v in shown)

    lines = [f"{'IoU in %':<{width}}" + "".join(f"{k.replace('_', ' '):>14}" for k in columns)]
    lines += [row(name, [c["iou"][name] for c in columns.values()]) for name in names]
    lines.append("-" * len(lines[0]))
    labels = {"miou": "mIoU", "pixel_accuracy": "pixel acc.", "mean_accuracy": "mean accuracy"}
    lines += [row(label, [c[k] for c in columns.values()]) for k, label in labels.items()]
    return "\n".join(lines)
