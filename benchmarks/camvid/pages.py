"""One page about the best model: what it gets right and wrong, how sure it is, and where it looks.

Everything is read from the run's folder: the single evaluation on `test` is not repeated, only the
shown images are predicted again.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np


def write(out: Path, run: Path, data: Path, *, shown: int = 3) -> Path:
    """Write the page of a finished run; returns its path.

    Args:
        out: folder of the page.
        run: folder of a run with `test-single_scale/`.
        data: folder of the data set.
        shown: how many of the worst and of the best test images.
    """
    from setr.datasets import open_dataset
    from setr.loading import load
    from setr.pages import page
    from setr.pages.charts import confusion_chart, reliability_chart
    from setr.pages.figures import attention_figure, features_figure, open_view, position_figure

    tested = run / "test-single_scale"
    if not (tested / "metrics.json").is_file():
        raise SystemExit(f"{run}: has no test-single_scale; it is no finished run of these tables")
    protocols: dict[str, dict[str, Any]] = {}
    for protocol in ("single_scale", "multi_scale"):
        path = run / f"test-{protocol}" / "metrics.json"
        if path.is_file():
            protocols[protocol] = json.loads(path.read_text("utf-8"))[protocol]
    figures = protocols["single_scale"]
    predictor = load(run)
    labels = predictor.info.labels
    dataset = open_dataset(str(data), "test", labels)
    numbers = {dataset.image_name(i): i for i in range(len(dataset))}
    ranked = _ranked(tested / "images.csv")
    chosen = {"Worst": ranked[:shown], "Best": ranked[-shown:][::-1]}

    parts = [
        page.tiles(_headline(protocols)),
        f'<p class="note">Run {page.escape(run.name)}; {figures["images"]} test images; '
        f"{page.escape(figures['protocol'])}.</p>",
        "<h2>Per class</h2>",
        page.table(
            ["class", "IoU", "boundary IoU"],
            [
                [f"{page.dot(labels.colours[i])}{page.escape(name)}", page.bar(iou),
                 page.percent(figures["boundary"]["iou_by_class"].get(name))]
                for i, (name, iou) in enumerate(figures["iou"].items())
            ],
        ),
    ]  # fmt: skip
    for kind, names in chosen.items():
        parts.append(f"<h2>{kind} test images</h2>")
        parts.append(page.legend(labels, range(len(labels.classes))))
        for name, score in names:
            sample = dataset.load(numbers[name])
            result = predictor.predict(dataset.pairs[numbers[name]].image)
            panels = [
                page.figure(
                    sample.image, f"{Path(name).stem}: mIoU {page.percent(score)}", photo=True
                ),
                page.figure(labels.palette[sample.mask], "truth"),
                page.figure(result.color(), "prediction"),
                page.figure(page.error_map(result.mask, sample.mask), "errors in vermilion"),
                page.figure(page.heat(result.confidence), "confidence"),
            ]
            parts.append(f'<div class="grid">{"".join(panels)}</div>')
    parts.append("<h2>How sure, and how often right</h2>")
    parts.append(reliability_chart(figures["calibration"]))
    parts.append("<h2>What is taken for what</h2>")
    parts.append(confusion_chart(np.array(figures["confusion"]), labels.classes))

    path = dataset.pairs[numbers[chosen["Best"][0][0]]].image
    view = open_view(predictor, path)
    H, W = view.image.shape[:2]
    points = [(0.5 * W, 0.85 * H), (0.5 * W, 0.15 * H), (0.2 * W, 0.5 * H)]
    depth = len(predictor.model.encoder.stages())
    for title, figure in (
        ("Where points of the image look", attention_figure(predictor, view, points, [depth])),
        ("What the layers hold", features_figure(predictor, view, [])),
        ("Which positions resemble each other", position_figure(predictor)),
    ):
        parts.append(f'<h2>{title}</h2><p class="note">{page.escape(figure.note)}</p>')
        parts.append(page.heat_scale("low", "high"))
        for row in figure.rows:
            cells = "".join(page.figure(p, c, photo=True, width=260) for p, c in row)
            parts.append(f'<div class="grid">{cells}</div>')
    out.mkdir(parents=True, exist_ok=True)
    page.write_page(out / "index.html", "CamVid: a close look at the best model", parts)
    return out / "index.html"


def _ranked(path: Path) -> list[tuple[str, float]]:
    """(name, mIoU) of the tested images, worst first; without those that have no figure."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["image"], row["miou"]) for row in csv.DictReader(file)]
    return sorted(((name, float(value)) for name, value in rows if value), key=lambda r: r[1])


def _headline(protocols: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    from setr.pages.page import percent

    first = protocols["single_scale"]
    facts = [
        (percent(figures["miou"]), f"mIoU %, {name.replace('_', ' ')}")
        for name, figures in protocols.items()
    ]
    return [
        *facts,
        (percent(first["pixel_accuracy"]), "pixel accuracy %"),
        (percent(first["boundary"]["iou"]), "boundary IoU %"),
        (percent(first["boundary"]["f"]), "boundary F %"),
        (percent(first["calibration"]["ece"]), "calibration error %"),
    ]
