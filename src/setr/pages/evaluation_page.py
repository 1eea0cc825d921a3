"""The page of `setr eval`: figures, charts, predictions and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setr.labels import Labels
from setr.pages.charts import DRAWN, confusion_chart, reliability_chart
from setr.pages.evaluation_tables import group_part, region_table, threshold_part
from setr.pages.gallery import Gallery
from setr.pages.loss_curves import loss_curves
from setr.pages.page import (
    IGNORED,
    RIGHT,
    WRONG,
    bar,
    dot,
    error_map,
    escape,
    failures,
    figure,
    heat,
    heat_scale,
    legend,
    percent,
    table,
    tiles,
    write_page,
)
from setr.pages.tables import by_protocol, difference_text
from setr.scores.scored_images import ScoredImage

CONFUSIONS = 8
"""Number of pairs of classes listed."""


def write_evaluation(
    path: Path,
    title: str,
    metrics: dict[str, Any],
    labels: Labels,
    gallery: Gallery,
    log: Path | None = None,
) -> None:
    """Write the page about an evaluation.

    Args:
        path: the file, complete when it appears.
        metrics: detailed figures by protocol as in `metrics.json`, and `compare` by the model's
            name.
        log: `log.jsonl` of the run that trained the model, if there is one.
    """
    protocols = by_protocol(metrics)
    figures = next(iter(protocols.values()))
    matrix = np.array(figures["confusion"])
    tested = [*gallery.worst, *gallery.best]
    masks = [ids for t in tested for ids in (t.truth, t.prediction)]
    parts = [tiles(_headline(protocols)), _facts(figures)]
    if others := metrics.get("compare"):
        parts += ["<h2>Compared with other models</h2>", *_comparison(protocols, others)]
    parts += [
        "<h2>IoU per class, %</h2>",
        class_table(protocols, labels),
        "<h2>Which classes are mistaken for which</h2>",
        *_confusion(matrix, labels, figures["iou"]),
        _confusions(matrix, labels),
        '<div class="pair"><div><h2>Is its confidence deserved?</h2>',
        _calibration(figures),
        "</div><div><h2>Are small things found?</h2>",
        _sizes(figures["recall_by_size"]),
        "</div></div>",
        "<h2>Are regions found, and predicted ones real?</h2>",
        region_table(figures["regions"], labels),
        *threshold_part(figures),
        *group_part(figures),
        "<h2>The worst images</h2>",
        errors_legend(labels, masks),
        heat_scale("confidence 0 %", "100 %"),
        *_rows(labels, gallery.worst),
        "<h2>The best images</h2>",
        *_rows(labels, gallery.best),
    ]
    if log is not None:
        parts += ["<h2>Losses of the training</h2>", loss_curves(log)]
    write_page(path, title, parts)


def _headline(protocols: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    for name, figures in protocols.items():
        text = f"mIoU %, {name.replace('_', ' ')}"
        if figures["intervals"]["miou"]:
            low, high = map(percent, figures["intervals"]["miou"])
            text += f", 95 % interval {low} to {high}"
        facts.append((percent(figures["miou"]), text))
    figures = next(iter(protocols.values()))
    return [
        *facts,
        (percent(figures["pixel_accuracy"]), "pixel accuracy %"),
        (percent(figures["mean_accuracy"]), "mean class accuracy %"),
        (percent(figures["image_miou"]), "mIoU % of the average image"),
        (percent(figures["boundary"]["iou"]), "boundary IoU %"),
        (percent(figures["boundary"]["f"]), "boundary F %"),
        (percent(figures.get("calibration", {}).get("ece"), 2), "calibration error %"),
    ]


def _facts(figures: dict[str, Any]) -> str:
    absent = sum(value is None for value in figures["iou"].values())
    rule = "left out of the means" if figures["absent"] == "skip" else "counted as 0 in the means"
    lines = [
        f"{figures['images']} images; protocol: {figures['protocol']}.",
        f"Classes in neither truth nor prediction, {rule}: {absent}." if absent else "",
        "Intervals: bootstrap over groups of images."
        if "groups" in figures
        else "Intervals: bootstrap over images, taken as independent (frames of one video are not; "
        "--group-by keeps them together).",
    ]
    text = f'<p class="note">{escape(" ".join(filter(None, lines)))}</p>'
    return text + failures(figures["failed"], " and are in no figure")


def class_table(protocols: dict[str, Any], labels: Labels) -> str:
    """Table of the classes: IoU under each protocol, recall, and boundary figures if measured.

    Classes without an IoU are named below it.
    """
    first = next(iter(protocols.values()))
    head = ["class", *(escape(name.replace("_", " ")) for name in protocols), "recall"]
    detailed = "boundary" in first
    rows, absent = [], []
    for name, colour in zip(labels.classes, labels.colours, strict=True):
        if all(figures["iou"][name] is None for figures in protocols.values()):
            absent.append(name)
            continue
        cells = [f"{dot(colour)}{escape(name)}"]
        cells += [bar(figures["iou"][name]) for figures in protocols.values()]
        cells.append(percent(first["accuracy"][name]))
        if detailed:
            cells.append(percent(first["boundary"]["iou_by_class"][name]))
            cells.append(percent(first["boundary"]["f_by_class"][name]))
        rows.append(cells)
    listed = table([*head, "boundary IoU", "boundary F"] if detailed else head, rows)
    return listed + _absent(absent)


def _absent(names: Sequence[str]) -> str:
    """Line with the classes that occur in neither truth nor prediction; empty without any."""
    text = f"In neither truth nor prediction: {', '.join(names)}."
    return f'<p class="note">{escape(text)}</p>' if names else ""


def _comparison(protocols: dict[str, Any], others: dict[str, Any]) -> list[str]:
    unit = "group" if "groups" in next(iter(protocols.values())) else "image"
    head = ["model", "mIoU", "mIoU per image", "boundary IoU", "calibration error",
            f"this model − that, per {unit}", "p"]  # fmt: skip
    figures, *more = protocols.values()
    rows = [["this model", *_key_figures(figures), "", ""]]
    rows += [["this model, multi scale", *_key_figures(several), "", ""] for several in more]
    for model, other in others.items():
        against = other["against"]
        p = f"{against['p']:.4f}"
        rows.append([escape(model), *_key_figures(other), difference_text(against), p])
        if several := other.get("multi_scale"):
            rows.append([f"{escape(model)}, multi scale", *_key_figures(several), "", ""])
    names = list(figures["iou"])
    classes = [
        [escape(name), bar(figures["iou"][name]), *(bar(o["iou"][name], "var(--second)") for o in
         others.values())]
        for name in names
        if any(f["iou"][name] is not None for f in (figures, *others.values()))
    ]  # fmt: skip
    return [
        table(head, rows),
        f'<p class="note">Same images. The difference is the mean over {unit}s of mIoU per {unit}, '
        "in points, with a bootstrap interval; p is of a two-sided sign-flip permutation test "
        "on the pairs: below 0.05 chance alone would rarely make such a difference.</p>",
        table(["IoU in %", "this model", *map(escape, others)], classes),
    ]


def _key_figures(figures: dict[str, Any]) -> list[str]:
    ece = figures.get("calibration", {}).get("ece")
    values = (figures["miou"], figures["image_miou"], figures["boundary"]["iou"], ece)
    return [percent(value) for value in values]


def _confusion(matrix: np.ndarray, labels: Labels, iou: dict[str, Any]) -> list[str]:
    """The confusion matrix of the classes that occur, and how to read it."""
    names = [name for name in labels.classes if iou[name] is not None]
    if not names:
        return ['<p class="note">No pixel was counted.</p>']
    kept = [labels.classes.index(name) for name in names]
    chart = confusion_chart(matrix[np.ix_(kept, [*kept, len(labels.classes)])], names)
    how = "Right is blue, wrong is orange." if len(names) <= DRAWN else "Bright is much."
    return [
        f'<p class="note">Rows are the truth, columns the prediction, in % of the row. {how}</p>',
        f'<div class="wide">{chart}</div>',
    ]


def _confusions(matrix: np.ndarray, labels: Labels) -> str:
    """Table of the most frequent pairs of a class and what it was taken for."""
    K = len(labels.classes)
    wrong = matrix[:, :K] * (1 - np.eye(K, dtype=np.int64))
    total = max(matrix.sum(), 1)
    rows = []
    for place in np.argsort(-wrong, axis=None)[:CONFUSIONS]:
        truth, guess = divmod(int(place), K)
        if wrong[truth, guess]:
            rows.append([
                f"{dot(labels.colours[truth])}{escape(labels.classes[truth])} taken for "
                f"{dot(labels.colours[guess])}{escape(labels.classes[guess])}",
                percent(wrong[truth, guess] / matrix[truth].sum()),
                percent(wrong[truth, guess] / total, 2),
            ])  # fmt: skip
    return table(["most frequent mistakes", "% of the class", "% of all pixels"], rows)


def _calibration(figures: dict[str, Any]) -> str:
    if "calibration" not in figures:
        return "<p>No confidences were recorded.</p>"
    error = percent(figures["calibration"]["ece"], 2)
    return (
        f'<p class="note">Expected calibration error {error} %.'
        "<br>Per bin of confidence: blue up to the smaller, orange from there to the larger of "
        "mean confidence and accuracy. Above the diagonal the model is too timid, below it too "
        "sure.</p>" + reliability_chart(figures["calibration"])
    )


def _sizes(buckets: dict[str, Any]) -> str:
    rows = [
        [name, str(values["regions"]), percent(values["found"]), percent(values["recall"])]
        for name, values in buckets.items()
    ]
    return table(["connected region", "number", "found, %", "pixels right, %"], rows) + (
        '<p class="note">Small is below 32², large from 96² pixels on; found means at least half '
        "of its pixels are right.</p>"
    )


def errors_legend(labels: Labels, masks: Iterable[np.ndarray]) -> str:
    """Colours of the classes that occur in these masks of the page, and of the error maps."""
    seen = {int(i) for ids in masks for i in np.unique(ids)}
    return legend(labels, sorted(seen)) + (
        f'<p class="legend">error map: <span>{dot(WRONG)}wrong</span><span>{dot(RIGHT)}right</span>'
        f"<span>{dot(IGNORED)}not counted</span></p>"
    )


def _rows(labels: Labels, images: Sequence[ScoredImage]) -> Iterable[str]:
    if not images:
        yield '<p class="note">No further images.</p>'
    for t in images:
        row = pictures(labels, t.image, t.truth, t.prediction)
        if t.confidence is not None:
            row += figure(heat(t.confidence), "confidence", photo=True)
        yield (
            f"<h3>{escape(t.name)}: mIoU {percent(t.figures['miou'])} %</h3>"
            f'<div class="grid">{row}</div>'
        )


def pictures(labels: Labels, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> str:
    """An image uint8 RGB (H, W, 3), its truth and prediction (H, W) ids, and where they differ."""
    return "".join(
        [
            figure(image, "image", photo=True),
            figure(labels.palette[truth], "truth"),
            figure(labels.palette[prediction], "prediction"),
            figure(error_map(prediction, truth), "error"),
        ]
    )
