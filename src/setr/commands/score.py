"""`setr score PRED_DIR TRUTH_DIR [options]`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from setr.arguments.choices import Absent
from setr.commands.parsing import parse, require_at_least
from setr.pages.group_tables import group_lines
from setr.pages.tables import figures_table, report_failed


@dataclass(frozen=True)
class Arguments:
    """Score existing label images against truth; no model needed.

    setr score predicted truth --num-classes 19
    setr score out photos/labels/val --label-map photos --class-ids
    """

    predictions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PRED_DIR")]
    """Folder of predicted label images (one id per pixel)."""
    truth: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRUTH_DIR")]
    """Folder of true label images; files pair up by name, whatever the suffix."""
    num_classes: int | None = None
    """Number of classes; the label map's where it names them."""
    ignore_index: tuple[int, ...] | None = None
    """Ids of the truth that are not counted, also if the label map lists them as classes; 255 if
    not given, unless the map lists it."""
    reduce_zero_label: bool = False
    """In both folders 0 means "not evaluated" and i is class i - 1 (ADE20K)."""
    label_map: str | None = None
    """YAML or JSON file with raw id: class id, name or ignore; a data.yaml or its folder; or the
    name of a known data set."""
    class_ids: bool = False
    """PRED_DIR holds class numbers from 0, as `setr predict` writes them, whatever ids or colours
    the truth has."""
    absent: Absent = "skip"
    """Classes found in neither folder: left out of the means (mmseg, Cityscapes), or counted as 0
    (ADE20K's server)."""
    group_by: str | None = None
    """Also Dice and IoU of each group of images, as of one patient or video; intervals are then
    over groups. A pattern of the paths below TRUTH_DIR, as '*_{any}', in which * stands for the
    group. --json has every group."""
    json: bool = False
    """Print the figures as JSON."""


def run(arguments: list[str]) -> int:
    """Print the figures; pairs that could not be read are named, exit code 1."""
    given = parse(Arguments, arguments, "score")
    require_at_least(given, 1, "num_classes")
    from setr.processes.progress import counting
    from setr.scoring import score_folders, score_labels

    labels = score_labels(
        given.num_classes,
        ignore=given.ignore_index,
        reduce_zero_label=given.reduce_zero_label,
        label_map=given.label_map,
    )
    figures = score_folders(
        given.predictions,
        given.truth,
        labels,
        class_ids=given.class_ids,
        absent=given.absent,
        group_by=given.group_by,
        progress=counting("score"),
    )
    lines = [figures_table({"figures": figures}), *group_lines(figures)]
    print(json.dumps(figures) if given.json else "\n".join(lines))
    return report_failed(figures)
