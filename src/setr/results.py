"""Our figures beside the paper's: collects finished runs into Tables 2 to 7.

A run counts for a row if its recipe is the row's and its settings are the recipe's; what only says
where and how the computation runs may differ. Several runs (seeds) are averaged, with the sample
standard deviation. Runs with changed settings, and of recipes the paper does not have, are listed
apart, with what was changed.
"""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setr.config import Config
from setr.errors import SetrError
from setr.paper_tables import Row, rows
from setr.recipes import recipe
from setr.settings import FREE, WEIGHTS, flat

COLUMNS = ("row", "setting", "paper", "ours", "difference", "recipe", "command", "commit",
           "hardware", "seeds")  # fmt: skip


class Run(NamedTuple):
    """A finished run.

    Attributes:
        folder: of the run.
        recipe: it was trained with.
        changed: settings that are not the recipe's.
        miou: by protocol, in percent.
        pixel_accuracy: by protocol, in percent.
        provenance: command, commit, hardware and seed, where recorded.
    """

    folder: Path
    recipe: str
    changed: tuple[str, ...]
    miou: dict[str, float]
    pixel_accuracy: dict[str, float]
    provenance: dict[str, Any]


class Line(NamedTuple):
    """One line of a table, as text; empty where nothing is measured."""

    row: str
    setting: str
    paper: str
    ours: str
    difference: str
    recipe: str
    command: str
    commit: str
    hardware: str
    seeds: str


def collect(folder: Path) -> list[Run]:
    """Every run below a folder that has a readable `metrics.json`, by folder name."""
    found = []
    for place in sorted(folder.glob("*/metrics.json")):
        try:
            values = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(values, dict):
            continue
        tested = {k: v for k, v in values.items() if isinstance(v, dict) and "miou" in v}
        name = str(values.get("recipe", place.parent.name))
        found.append(
            Run(
                place.parent,
                name,
                _changes(place.parent / "config.yaml", name),
                _percent(tested, "miou"),
                _percent(tested, "pixel_accuracy"),
                values.get("provenance") or {},
            )
        )
    return found


def _changes(place: Path, name: str) -> tuple[str, ...]:
    """Settings of a run that differ from its recipe's, as `train.steps=4`."""
    try:
        own, named = Config.load(place), recipe(name)
    except SetrError:
        return ("settings unknown",)
    mine, theirs = flat(own), flat(named)
    for key in WEIGHTS:
        if mine[key] and theirs[key]:
            mine[key] = theirs[key]  # the same weights from a file
    changes = [f"{k}={v}" for k, v in mine.items() if k not in FREE and v != theirs[k]]
    if own.data.val_split in own.data.train_split.split("+"):
        changes.append("tested on images it was trained on")
    return tuple(changes)


def _percent(tested: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    return {
        protocol: 100 * values[key]
        for protocol, values in tested.items()
        if values.get(key) is not None
    }


def paper_lines(runs: Sequence[Run], table: int | None = None) -> dict[int, list[Line]]:
    """Tables by number; a row with a pixel accuracy is followed by a line for that."""
    tables: dict[int, list[Line]] = {}
    for row in rows(table):
        lines = tables.setdefault(row.table, [])
        matching = [run for run in runs if run.recipe == row.recipe and not run.changed]
        lines.append(_line(row, row.setting, row.miou, matching, "miou"))
        if row.pixel_accuracy is not None:
            setting = f"{row.setting}, pixel acc."
            lines.append(_line(row, setting, row.pixel_accuracy, matching, "pixel_accuracy"))
    return tables


def _line(row: Row, setting: str, paper: float, runs: list[Run], key: str) -> Line:
    """What was measured under the row's protocol; nothing for rows of a test server."""
    measured = [run for run in runs if row.protocol in getattr(run, key)]
    values = [getattr(run, key)[row.protocol] for run in measured]
    mean = statistics.fmean(values) if values else None
    return Line(
        row.method,
        setting,
        f"{paper:.2f}",
        _figure(values),
        "" if mean is None else f"{mean - paper:+.2f}",
        row.recipe,
        _joined(measured, "command") or (f"setr train {row.recipe}" if row.recipe else ""),
        _joined(measured, "commit"),
        _joined(measured, "hardware"),
        _joined(measured, "seed"),
    )


def other_lines(runs: Sequence[Run]) -> list[Line]:
    """Runs that are no row of the paper, one line per recipe, changes and protocol."""
    known = {row.recipe for row in rows()}
    groups: dict[tuple[str, tuple[str, ...], str], list[Run]] = {}
    for run in runs:
        for protocol in run.miou:
            if run.changed or run.recipe not in known:
                groups.setdefault((run.recipe, run.changed, protocol), []).append(run)
    return [
        Line(
            name,
            ", ".join([protocol.replace("_", " "), *changed]),
            "",
            _figure([run.miou[protocol] for run in group]),
            "",
            name,
            _joined(group, "command") or f"setr train {name}",
            *(_joined(group, key) for key in ("commit", "hardware", "seed")),
        )
        for (name, changed, protocol), group in groups.items()
    ]


def _figure(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f} (n={len(values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _joined(runs: Sequence[Run], key: str) -> str:
    found = (run.provenance.get(key) for run in runs)
    return "; ".join(dict.fromkeys(str(value) for value in found if value is not None))


# --- forms ----------------------------------------------------------------------------------------


def as_text(titles: dict[str, list[Line]], columns: Sequence[str] = COLUMNS) -> str:
    """Aligned columns for the terminal."""
    blocks = []
    for title, lines in titles.items():
        cells = [list(columns), *([getattr(line, c) for c in columns] for line in lines)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        rows_ = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        blocks.append("\n".join([title, *(row.rstrip() for row in rows_)]))
    return "\n\n".join(blocks)


def as_markdown(titles: dict[str, list[Line]]) -> str:
    """GitHub tables."""
    blocks = []
    for title, lines in titles.items():
        table = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        table += [
            f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines
        ]
        blocks.append(f"## {title}\n\n" + "\n".join(table))
    return "\n\n".join(blocks) + "\n"


def as_html(titles: dict[str, list[Line]]) -> str:
    """A self-contained page."""
    parts = []
    for title, lines in titles.items():
        head = "".join(f"<th>{column}</th>" for column in COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines
        )
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>")
    style = (
        "body{font:14px/1.4 system-ui,sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{padding:3px 9px;border-bottom:1px solid #ddd;text-align:left}"
        "td:nth-child(3),td:nth-child(4),td:nth-child(5){text-align:right;white-space:nowrap}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>setr results</title>'
        f"<style>{style}</style><body><h1>Results</h1>{''.join(parts)}</body></html>\n"
    )
