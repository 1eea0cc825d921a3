"""Tables 2 to 7 of the paper with the results of finished runs.

A run counts for a row if it used the row's recipe with unchanged settings on the paper's data;
settings of where and how it was computed may differ. A file of pretrained weights is taken to hold
the recipe's; another tag, Hub name or run changes the experiment. Several runs (seeds) on the same
data are averaged, with the sample standard deviation; an exact repeat counts once. Runs with other
settings or data, and of recipes that are not in the paper, are listed separately with their
changes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setr.arguments.typed import typed
from setr.config import Config
from setr.errors import SetrError
from setr.labels import known_labels
from setr.paper_tables import IMAGES, Row, command, rows, systems
from setr.reading.parsed import BROKEN, fault_of, json_of
from setr.reading.remote import WEIGHT_SUFFIXES
from setr.recipes import recipe
from setr.training.settings import FREE, WEIGHTS, flat

_TOLERANCE = 3  # images by which common versions of a data set differ


class Run(NamedTuple):
    """A finished run.

    Attributes:
        folder: of the run.
        recipe: name of its recipe.
        changed: settings that differ from the recipe's, and what else makes it another experiment.
        miou: by protocol, in percent.
        pixel_accuracy: by protocol, in percent.
        provenance: command, commit, hardware and seed, if recorded.
        data: name of the data set, or its folder if not recorded.
        content: digest of the data, equal for runs on the same files in any folder.
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
    """One line of a table, as text; unknown values are empty."""

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


COLUMNS = Line._fields


def collect(folder: Path) -> list[Run]:
    """All runs below a folder, sorted by folder name; a broken `metrics.json` is told on stderr."""
    found = []
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            found.append(_run(path))
        except (OSError, *BROKEN) as error:
            print(f"warning: {path}: left out ({fault_of(error)})", file=sys.stderr)
    return found


def _run(path: Path) -> Run:
    """A run by its `metrics.json`.

    Raises:
        OSError, one of `BROKEN`: not readable, or values of another type.
    """
    values = json_of(path.read_text(encoding="utf-8"))
    tested = {k: v for k, v in values.items() if isinstance(v, dict) and "miou" in v}
    name = str(values.get("recipe", path.parent.name))
    config = _config(path.parent / "config.yaml")
    data = values.get("data")
    if not isinstance(data, dict):  # an older run, which did not record it
        root = config.data.root if config else str(path.parent)
        data = {"name": root, "digest": root}
    return Run(
        path.parent,
        name,
        _changes(config, name, data, values.get("augment")) + _left_out(tested),
        _percent(tested, "miou"),
        _percent(tested, "pixel_accuracy"),
        dict(values.get("provenance") or {}),
        str(data.get("name")),
        str(data.get("digest")),
    )


def _config(path: Path) -> Config | None:
    try:
        return Config.load(path)
    except SetrError:
        return None


def _changes(
    own: Config | None, name: str, data: dict[str, Any], augment: str | None
) -> tuple[str, ...]:
    """What differs from the recipe: settings such as `train.steps=4`, augmentation, and data."""
    try:
        named = recipe(name)
    except SetrError:
        own = None
    if own is None:
        return ("settings unknown",)
    mine, theirs = flat(own), flat(named)
    for key in WEIGHTS:
        if mine[key] and theirs[key] and _is_file(mine[key]):
            mine[key] = theirs[key]  # assume the same weights from a file
    changes = [f"{k}={v}" for k, v in mine.items() if k not in FREE and v != theirs[k]]
    if augment is not None:
        changes.append("own augmentation")
    if own.data.val_split in own.data.train_split.split("+"):
        changes.append("tested on images it was trained on")
    if name in systems():
        changes += _other_data(systems()[name].dataset, data)
    return tuple(changes)


def _is_file(weights: str) -> bool:
    """Whether pretrained weights are a file; a tag, a Hub name or a run names which they are."""
    return Path(weights).suffix in WEIGHT_SUFFIXES


def _other_data(dataset: str, data: dict[str, Any]) -> list[str]:
    """How a run's data differ from the paper's; empty if they do not."""
    if "classes" not in data:
        return ["data not recorded"]
    if tuple(data["classes"]) != known_labels(dataset).classes:
        return [f"not the classes of {dataset}"]
    counted = (data.get("train_images", 0), data.get("val_images", 0))
    return [
        f"{count} {part} images, not {usual}"
        for part, count, usual in zip(("training", "test"), counted, IMAGES[dataset], strict=True)
        if abs(count - usual) > _TOLERANCE
    ]


def _left_out(tested: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Says how many images the tests had to leave out, if any."""
    most = max((len(values.get("failed") or ()) for values in tested.values()), default=0)
    return (f"{most} test images failed",) if most else ()


def _percent(tested: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    return {
        protocol: 100 * typed(float, values[key], f"{protocol}: {key}")
        for protocol, values in tested.items()
        if values.get(key) is not None
    }


def paper_lines(runs: Sequence[Run], table: int | None = None) -> dict[int, list[Line]]:
    """Lines of each table, by its number.

    A row has one line for each version of the data it was run on, each followed by another line
    if the paper gives a pixel accuracy.
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
    """Runs grouped by the content of their data."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.content, []).append(run)
    return list(groups.values())


def _line(
    row: Row, setting: str, paper: float, runs: list[Run], key: str, every: Sequence[Run]
) -> Line:
    """The results under the row's protocol; none for rows of a test server."""
    measured = [run for run in runs if row.protocol in getattr(run, key)]
    values = _values(measured, row.protocol, key)
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
    """Runs that match no row of the paper, one line per recipe, changes, protocol and data."""
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
            _figure(_values(group, protocol)),
            "",
            name,
            _data_names(group, runs),
            _joined(group, "command") or f"setr train {name}",
            *(_joined(group, key) for key in ("commit", "hardware", "seed")),
        )
        for (name, changed, protocol, _), group in groups.items()
    ]


def _data_names(group: Sequence[Run], runs: Sequence[Run]) -> str:
    """Names of a group's data, with a digest if runs on other content have the same name."""
    shown = []
    for name in dict.fromkeys(run.data for run in group):
        contents = {run.content for run in runs if run.data == name}
        shown.append(f"{name} ({group[0].content})" if len(contents) > 1 else name)
    return "; ".join(shown)


def _values(runs: Sequence[Run], protocol: str, key: str = "miou") -> list[float]:
    """The runs' figures; of repeats with the same seed and figure, which show no spread, one."""
    values = [getattr(run, key)[protocol] for run in runs]
    seeds = [run.provenance.get("seed", run.folder) for run in runs]
    return [value for _, value in dict.fromkeys(zip(seeds, values, strict=True))]


def _figure(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f} (n={len(values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _joined(runs: Sequence[Run], key: str) -> str:
    found = (run.provenance.get(key) for run in runs)
    return "; ".join(dict.fromkeys(str(value) for value in found if value is not None))
