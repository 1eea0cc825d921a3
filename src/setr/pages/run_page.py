"""The HTML report of a training run: figures, the loss, predictions on the validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr.labels import Labels
from setr.pages.evaluation_page import class_table, errors_legend, pictures
from setr.pages.loss_curves import loss_curves
from setr.pages.page import percent, tiles, write_page
from setr.pages.tables import by_protocol


class Shown(NamedTuple):
    """One image of a run's report: uint8 RGB (H, W, 3), truth and prediction (H, W) ids."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def write_run(
    path: Path,
    *,
    title: str,
    metrics: dict[str, Any],
    labels: Labels,
    shown: list[Shown],
    log: Path,
) -> None:
    """Write the page about a training run.

    Args:
        path: the file, complete when it appears.
        metrics: as in `metrics.json`.
        shown: images to show, in order.
        log: the run's `log.jsonl`, for the loss curve.
    """
    protocols = by_protocol(metrics)
    first = next(iter(protocols.values()))
    facts = [
        (percent(figures["miou"]), f"mIoU %, {name.replace('_', ' ')}")
        for name, figures in protocols.items()
    ]
    facts.append((percent(first["pixel_accuracy"]), "pixel accuracy %"))
    facts.append((f"{metrics['seconds'] / 60:.1f}", "minutes in all"))
    rows = [pictures(labels, s.image, s.truth, s.prediction) for s in shown]
    write_page(
        path,
        title,
        [
            tiles(facts),
            "<h2>IoU per class, %</h2>",
            class_table(protocols, labels),
            "<h2>Losses of the training</h2>",
            loss_curves(log),
            "<h2>Validation images</h2>",
            errors_legend(labels, [ids for s in shown for ids in (s.truth, s.prediction)]),
            *(f'<div class="grid">{row}</div>' for row in rows),
        ],
    )
