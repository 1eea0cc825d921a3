"""Our figures beside the paper's: collects finished runs into Tables 2 to 7.

A run counts for a row if its recipe is the row's, its settings are the recipe's, and its data are
the paper's; what only says where and how the computation runs may differ. Several runs (seeds) on
the same data are averaged, with the sample standard deviation. Runs with changed settings or other
data, and of recipes the paper does not have, are listed apart, with what was changed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setr.config import Config
from setr.errors import SetrError
from setr.labels import known_labels
from setr.pages import page
from setr.paper_tables import IMAGES, Row, command, rows, systems
from setr.recipes import recipe
from setr.training.settings import FREE, WEIGHTS, flat

COLUMNS = ("row", "setting", "paper", "ours", "difference", "recipe", "data", "command", "commit",
           "hardware", "seeds")  # fmt: skip
_SPARE = 3  # images by which lists of a data set in use differ


class Run(NamedTuple):
    """A finished run.

    Attributes:
        folder: of the run.
        recipe: it was trained with.
        changed: settings that are not the recipe's.
        miou: by protocol, in percent.
        pixel_accuracy: by protocol, in percent.
        provenance: command, commit, hardware and seed, where recorded.
        data: name of the data set, or the folder where nothing is recorded.
        content: equal for runs on the same files, wherever they lie.
    """

    folder: Path
    recipe: str
    changed: tuple[str, ...]
    miou: dict[str, float]
    pixel_accuracy: dict[str, float]
    provenance: dict[str, Any]
    data: str
    content: str


class Line(NamedTuple):
    """One line of a table, as text; empty where nothing is measured."""

    row: str
    setting: str
    paper: str
    ours: str
    difference: str
    recipe: str
    data: str
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
        config = _config(place.parent / "config.yaml")
        data = values.get("data")
        if not isinstance(data, dict):  # a run of a time when it was not recorded
            root = config.data.root if config else str(place.parent)
            data = {"name": root, "digest": root}
        found.append(
            Run(
                place.parent,
                name,
                _changes(config, name, data),
                _percent(tested, "miou"),
                _percent(tested, "pixel_accuracy"),
                values.get("provenance") or {},
                str(data.get("name")),
                str(data.get("digest")),
            )
        )
    return found


def _config(place: Path) -> Config | None:
    try:
        return Config.load(place)
    except SetrError:
        return None


def _changes(own: Config | None, name: str, data: dict[str, Any]) -> tuple[str, ...]:
    """Settings of a run that differ from its recipe's, as `train.steps=4`, and other data."""
    try:
        named = recipe(name)
    except SetrError:
        own = None
    if own is None:
        return ("settings unknown",)
    mine, theirs = flat(own), flat(named)
    for key in WEIGHTS:
        if mine[key] and theirs[key]:
            mine[key] = theirs[key]  # the same weights from a file
    changes = [f"{k}={v}" for k, v in mine.items() if k not in FREE and v != theirs[k]]
    if own.data.val_split in own.data.train_split.split("+"):
        changes.append("tested on images it was trained on")
    if name in systems():
        changes += _other_data(systems()[name].dataset, data)
    return tuple(changes)


def _other_data(dataset: str, data: dict[str, Any]) -> list[str]:
    """Why a run's data are not those of the paper's figure; empty if they are."""
    if "classes" not in data:
        return ["data not recorded"]
    if tuple(data["classes"]) != known_labels(dataset).classes:
        return [f"not the classes of {dataset}"]
    counted = (data.get("train_images", 0), data.get("val_images", 0))
    return [
        f"{count} {part} images, not {usual}"
        for part, count, usual in zip(("training", "test"), counted, IMAGES[dataset], strict=True)
        if abs(count - usual) > _SPARE
    ]


def _percent(tested: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    return {
        protocol: 100 * values[key]
        for protocol, values in tested.items()
        if values.get(key) is not None
    }


def paper_lines(runs: Sequence[Run], table: int | None = None) -> dict[int, list[Line]]:
    """Tables by number; a row with a pixel accuracy is followed by a line for that.

    A row has one line for each content of the data it was run on.
    """
    tables: dict[int, list[Line]] = {}
    for row in rows(table):
        lines = tables.setdefault(row.table, [])
        matching = [run for run in runs if run.recipe == row.recipe and not run.changed]
        for group in _by_content(matching) or [[]]:
            lines.append(_line(row, row.setting, row.miou, group, "miou", runs))
            if row.pixel_accuracy is not None:
                setting, figure = f"{row.setting}, pixel acc.", row.pixel_accuracy
                lines.append(_line(row, setting, figure, group, "pixel_accuracy", runs))
    return tables


def _by_content(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs on the same data together."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.content, []).append(run)
    return list(groups.values())


def _line(
    row: Row, setting: str, paper: float, runs: list[Run], key: str, every: Sequence[Run]
) -> Line:
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
        _data_names(measured, every),
        _joined(measured, "command") or (command(row.recipe) if row.recipe else ""),
        _joined(measured, "commit"),
        _joined(measured, "hardware"),
        _joined(measured, "seed"),
    )


def other_lines(runs: Sequence[Run]) -> list[Line]:
    """Runs that are no row of the paper, one line per recipe, changes, protocol and data."""
    known = {row.recipe for row in rows()}
    groups: dict[tuple[str, tuple[str, ...], str, str], list[Run]] = {}
    for run in runs:
        for protocol in run.miou:
            if run.changed or run.recipe not in known:
                key = (run.recipe, run.changed, protocol, run.content)
                groups.setdefault(key, []).append(run)
    return [
        Line(
            name,
            ", ".join([protocol.replace("_", " "), *changed]),
            "",
            _figure([run.miou[protocol] for run in group]),
            "",
            name,
            _data_names(group, runs),
            _joined(group, "command") or f"setr train {name}",
            *(_joined(group, key) for key in ("commit", "hardware", "seed")),
        )
        for (name, changed, protocol, _), group in groups.items()
    ]


def _data_names(group: Sequence[Run], runs: Sequence[Run]) -> str:
    """Names of a group's data; with its digest where others of that name hold something else."""
    shown = []
    for name in dict.fromkeys(run.data for run in group):
        contents = {run.content for run in runs if run.data == name}
        shown.append(f"{name} ({group[0].content})" if len(contents) > 1 else name)
    return "; ".join(shown)


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
    figures = [COLUMNS.index(name) for name in ("paper", "ours", "difference")]
    parts = []
    for title, lines in titles.items():
        rows_ = [[page.escape(cell) for cell in line] for line in lines]
        parts += [f"<h2>{page.escape(title)}</h2>", page.table(COLUMNS, rows_, figures)]
    return page.document("Results", parts)
