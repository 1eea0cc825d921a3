"""`setr doctor DATA`: check a data set before training."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len, set_cell_size

from setr.commands.parsing import parse
from setr.commands.shared import Data, Words
from setr.data.dataset import Dataset
from setr.data.pairing import NoSplitError
from setr.datasets import open_dataset, usual_splits
from setr.doctor import Checkup, Finding, check, describe_map, diagnose, figures
from setr.errors import DATA_CHECK_FAILED, OK, SetrError
from setr.pages.doctor_page import write_checkups
from setr.processes.progress import counting
from setr.processes.standard_streams import tell

_ABSENT = "no such split"


@dataclass(frozen=True)
class Arguments:
    """Check a data set: every file, every id, every class, and leaks between the splits.

    setr doctor photos --page check.html
    """

    data: Data
    """Folder, YAML file or shards of the data set, or hf:OWNER/NAME (hf:OWNER/NAME:CONFIG)."""
    labels: str | None = None
    """Known data set whose classes to use where the folder names none."""
    splits: Words = ()
    """Splits to check; those that exist of train, val and test, or all folds, by default."""
    quick: bool = False
    """Read only headers and ends of the images, as training does; no search for leaks."""
    page: Path | None = None
    """Write an HTML page with thumbnails here."""
    json: bool = False
    """Print the findings as JSON."""


def run(arguments: list[str]) -> int:
    """Check; the exit code is 3 if training would refuse the data."""
    given = parse(Arguments, arguments, "doctor")
    checkups, findings = [], []
    for dataset in _open_splits(given):
        if isinstance(dataset, Finding):
            findings.append(dataset)
        else:
            bar = counting(f"check {dataset.split}")
            checkups.append(check(dataset, full=not given.quick, progress=bar))
    findings += diagnose(checkups)
    failed = any(finding.level == "error" for finding in findings)
    if given.json:
        print(json.dumps(_plain(given.data, checkups, findings, failed)))
    else:
        print("\n".join(_summary(given.data, checkups, findings)))
        complete = {"train", "val"} <= {checkup.dataset.split for checkup in checkups}
        if complete and not failed and not given.quick:
            data = shlex.quote(str(given.data))
            train = f"setr train RECIPE --data.root {data}"
            tell(f"next: setr auto {data}, or {train}")
    if given.page:
        write_checkups(given.page, given.data, checkups, findings)
        tell(f"wrote {given.page}")
    return DATA_CHECK_FAILED if failed else OK


def _open_splits(given: Arguments) -> list[Dataset | Finding]:
    """The splits that exist; one that cannot be opened becomes a finding."""
    opened: list[Dataset | Finding] = []
    absent: NoSplitError | None = None
    usual = usual_splits(given.data)
    for split in given.splits or usual:
        try:
            dataset = open_dataset(given.data, split, given.labels)
        except NoSplitError as error:
            if given.splits:
                raise
            absent = absent or error
        except SetrError as error:
            if error.code != DATA_CHECK_FAILED:
                raise
            finding = Finding("error", split, str(error))
            if finding.text not in {f.text for f in opened if isinstance(f, Finding)}:
                opened.append(finding)  # a problem of the whole folder is reported once
        else:
            unlabelled = len(dataset) and dataset.sources(0)[1] is None
            if unlabelled and not dataset.name.startswith("scenes"):
                text = f"{len(dataset)} images without masks: for prediction only, not checked"
                opened.append(Finding("note", split, text))
            else:
                opened.append(dataset)
    if not opened and absent:
        raise absent
    if not given.splits:
        there = {found.split for found in opened}
        opened += [
            Finding("warning", split, f"{_ABSENT}; training wants one or --data.{split}-split")
            for split in ("train", "val")
            if split in usual and split not in there
        ]
    return opened


def _plain(data: str, checkups: list[Checkup], findings: list[Finding], failed: bool) -> dict:
    return {
        "data": data,
        "ok": not failed,
        "map": describe_map(checkups[0].dataset.labels) if checkups else None,
        "splits": {c.dataset.split: figures(c) for c in checkups},
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _summary(data: str, checkups: list[Checkup], findings: list[Finding]) -> list[str]:
    lines = [data]
    if checkups:
        lines.append(describe_map(checkups[0].dataset.labels))
        if bands := checkups[0].dataset.bands:
            lines.append(f"images: {bands}")
        lines += ["", *_class_table(checkups), ""]
    for checkup in checkups:
        values = figures(checkup)
        sizes = ", ".join(f"{size} ({n})" for size, n in values["sizes"].items())
        more = f" and {values['other_sizes']} other sizes" if values["other_sizes"] else ""
        lines.append(f"{checkup.dataset.split}: {values['images']} images; {sizes}{more}")
    for finding in findings:
        lines.append(f"{finding.level:<8}{finding.split}: {finding.text}")
        lines += [f"{'':<10}{file}" for file in finding.files]
    errors = sum(f.level == "error" for f in findings)
    warnings = sum(f.level == "warning" for f in findings)
    absent = " and ".join(f.split for f in findings if f.text.startswith(_ABSENT))
    verdict = f"ready to train, once there is {absent}" if absent else "ready to train"
    if errors:
        verdict = "training would refuse this data"
    return [*lines, f"{errors} errors, {warnings} warnings: {verdict}"]


def _class_table(checkups: list[Checkup]) -> list[str]:
    """Share of the pixels and images of each class, and its median-frequency weight."""
    tables = {c.dataset.split: figures(c)["classes"] for c in checkups}
    names = checkups[0].dataset.labels.classes
    width = max(map(cell_len, (*names, "class")))
    head = "".join(f"{split + ' %':>10}{'images':>9}{'weight':>9}" for split in tables)
    rows = [f"{'class':<{width}}{head}"]
    for name in names:
        cells = [tables[split][name] for split in tables]
        shown = "".join(
            f"{100 * c['share']:>10.3f}{c['images']:>9}{c['weight']:>9.2f}" for c in cells
        )
        rows.append(f"{set_cell_size(name, width)}{shown}")
    return rows
