"""`setr adjust MODEL DATA -o OUT [options]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from setr.arguments.choices import Precision
from setr.commands.parsing import parse, require_at_least, require_default, require_unused
from setr.commands.shared import Data, Device, Model, Out
from setr.errors import UsageError
from setr.pages.tables import figures_table, report_failed


@dataclass(frozen=True)
class Arguments:
    """Add constants to a model's class logits so that mIoU on a validation split rises.

    By IoU, they follow from two rules and one number that is searched for: a multiple of the log of
    each class's share of the training pixels takes back what class weights overdo (or raises rare
    classes where there were none), and a class with a low IoU is given -log IoU. By class, each is
    searched alone: more on that split, and more of it is chance.

    setr adjust runs/mine photos -o runs/adjusted
    """

    model: Model
    """Model directory, Hub name or checkpoint."""
    data: Data
    """Folder, YAML file or shards of the data set, or hf:OWNER/NAME."""
    out: Out
    """Folder for the adjusted model."""
    split: str = "val"
    """Split to search on: one the model was not trained on, and not the one it is judged by."""
    by: Literal["iou", "class"] = "iou"
    """By the classes' frequency and IoU, or every class alone."""
    train_split: str = "train"
    """Split whose pixels are counted, by IoU."""
    threshold: float | None = None
    """Of two classes: nothing is searched for; the class with fewer pixels in the split is chosen
    where its probability is at least this, above 0 and below 1. `setr eval` shows precision and
    recall at each threshold."""
    device: Device = "auto"
    precision: Precision = "auto"
    """Compute in this precision."""
    workers: int = 2
    """Processes that decode images."""


def run(arguments: list[str]) -> int:
    """Write the adjusted model and print what was added to each class."""
    given = parse(Arguments, arguments, "adjust")
    require_at_least(given, 0, "workers")
    require_unused(given.out)
    _check_ways(given)
    from setr.datasets import open_dataset
    from setr.doctor import check
    from setr.evaluation import evaluate_split
    from setr.fitting import require_fit
    from setr.hub import save_pretrained
    from setr.loading import load
    from setr.model_info import with_metrics
    from setr.scores.adjustment import (
        ADJUSTED,
        class_biases,
        find_offsets,
        shift_logits,
        threshold_after,
        threshold_offsets,
    )

    predictor = load(given.model, device=given.device)
    model, info = predictor.network, predictor.info
    class_biases(model)
    dataset = open_dataset(given.data, given.split, info.labels, info.bands)
    require_fit(model, info, dataset)
    searched = check(dataset)
    searched.require_counted("search on another one with --split")
    if given.threshold is not None:
        added = threshold_offsets(given.threshold, searched.pixels)
    else:
        pixels = None
        if given.by == "iou":
            trained = check(open_dataset(given.data, given.train_split, info.labels, info.bands))
            trained.require_counted("count another one with --train-split, or adjust --by class")
            pixels = trained.pixels
        added = find_offsets(
            model, info, dataset, pixels=pixels, precision=given.precision, workers=given.workers
        )
    shift_logits(model, added)
    figures = evaluate_split(
        model, info, dataset, precision=given.precision, detailed=False, workers=given.workers
    )
    score = round(figures["miou"] or 0.0, 4)
    metrics: dict[str, Any] = {f"{given.split} mIoU": score, ADJUSTED: given.split}
    if given.threshold is not None:
        rare = info.labels.classes[int(searched.pixels[0] >= searched.pixels[1])]
        name = f"threshold of {rare}"
        metrics[name] = threshold_after(info.metrics.get(name, 0.5), given.threshold)
    save_pretrained(given.out, model, with_metrics(info, metrics, dataset.public_name))
    for name, value in zip(info.labels.classes, added, strict=True):
        print(f"{name:<24}{value:+.2f}")
    if given.threshold is not None:
        print(figures_table({"single_scale": figures}))
    print(f"{given.split} mIoU {100 * score:.2f}; written to {given.out}")
    return report_failed(figures)


def _check_ways(given: Arguments) -> None:
    """Refuse options that have no effect beside the others, and a threshold out of range."""
    if given.threshold is not None:
        rule = "does nothing with --threshold; leave one of them out"
        require_default(given, rule, "by", "train_split")
        if not 0 < given.threshold < 1:
            raise UsageError(f"--threshold {given.threshold:g}: give more than 0 and less than 1")
    elif given.by == "class":
        require_default(given, "does nothing with --by class; leave one of them out", "train_split")
