"""The results of `setr sweep` as text, CSV, JSON and a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from setr.pages.charts import svg
from setr.pages.page import escape, table, tiles, write_page
from setr.pages.tables import aligned
from setr.reading.files import one_line
from setr.trials import Compared, Trial, compared
from setr.variations import LOGARITHMIC, short, value_text
from setr.writing import write_rows

WIDTH, HEIGHT, LEFT, TOP = 640, 170, 48, 14


def sweep_text(trials: Sequence[Trial]) -> str:
    """A row for each variation, the best first; mIoU in percent."""
    groups = compared(trials)
    seeds = max(len(group.trials) for group in groups)
    head = [*short(groups[0].variation), "mIoU", *(["seeds"] if seeds > 1 else []), ""]
    rows = [
        [
            *map(value_text, group.variation.values()),
            _miou(group),
            *([f"{len(group.mious)} of {len(group.trials)}"] if seeds > 1 else []),
            _note(group),
        ]
        for group in groups
    ]
    return "\n".join(aligned([head, *rows]))


def _miou(group: Compared) -> str:
    if group.mean is None:
        return "n/a"
    spread = "" if group.deviation is None else f" ± {100 * group.deviation:.2f}"
    return f"{100 * group.mean:.2f}{spread}"


def _note(group: Compared) -> str:
    """What became of trainings that did not run to their end."""
    notes = [
        f"ended at step {t.metrics['steps']}" for t in group.trials if t.metrics and t.ended_early
    ]
    notes += [f"failed: {one_line(t.problem)}" for t in group.trials if t.problem]
    waiting = sum(t.metrics is None and not t.problem for t in group.trials)
    return "; ".join([*notes, *([f"{waiting} not trained yet"] if waiting else [])])


def as_json(trials: Sequence[Trial]) -> dict[str, Any]:
    """What `results.json` holds: fractions of 1, the best variation first."""
    return {
        "complete": all(t.metrics is not None or t.problem for t in trials),
        "variations": [
            {
                "settings": dict(group.variation),
                "miou": group.mean,
                "deviation": group.deviation,
                "runs": [_run(trial) for trial in group.trials],
            }
            for group in compared(trials)
        ],
    }


def _run(trial: Trial) -> dict[str, Any]:
    found = trial.metrics or {}
    return {
        "run": str(trial.run),
        "seed": trial.seed,
        "miou": trial.miou,
        "steps": found.get("steps"),
        "ended_early": trial.ended_early,
        "seconds": found.get("seconds"),
        "problem": trial.problem,
    }


def write_results_csv(path: Path, trials: Sequence[Trial]) -> None:
    """A row for each training, in the order of the trials; fractions of 1, empty if unknown."""
    rows = [
        {name: value_text(value) for name, value in trial.variation.items()} | _run(trial)
        for trial in trials
    ]
    write_rows(path, [list(rows[0]), *(row.values() for row in rows)])


def write_sweep(path: Path, title: str, trials: Sequence[Trial]) -> None:
    """Write the page; it appears under its name when complete."""
    groups = compared(trials)
    finished = [trial for trial in trials if trial.metrics is not None]
    best = groups[0]
    hours = sum(trial.metrics["seconds"] for trial in finished if trial.metrics) / 3600
    long = f"{hours:.1f}", "hours of training"
    facts = [
        (_miou(best), "best mIoU in %"),
        (str(len(groups)), "settings"),
        (f"{len(finished)} of {len(trials)}", "trainings finished"),
        long if hours >= 1 else (f"{60 * hours:.0f} min", "of training"),
    ]
    parts = [
        tiles(facts),
        '<p class="note">mIoU on the validation split, which chose the best of them: of many, the '
        "first is a little too good. Test it once, on images that took no part in this.</p>",
        "<h2>Settings</h2>",
        _ranking(groups),
    ]
    for name, values in _varied(groups):
        chart = _effect(groups, name, values)
        parts += [f"<h2>{escape(name)}</h2>", chart]
    write_page(path, title, parts)


def _ranking(groups: Sequence[Compared]) -> str:
    names = list(short(groups[0].variation))
    rows = []
    for group in groups:
        runs = ", ".join(trial.run.name for trial in group.trials)
        cells = [escape(value_text(v)) for v in group.variation.values()]
        rows.append([*cells, _miou(group), escape(runs), escape(_note(group))])
    return table([*map(escape, names), "mIoU in %", "runs", ""], rows, (len(names),))


def _varied(groups: Sequence[Compared]) -> Iterable[tuple[str, list[Any]]]:
    """The settings with two values or more that were trained, and these in order."""
    trained = [group for group in groups if group.mious]
    for name in groups[0].variation:
        values = list({repr(v): v for g in trained for v in [g.variation[name]]}.values())
        if len(values) > 1:
            yield name, sorted(values) if all(map(_is_number, values)) else values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _effect(groups: Sequence[Compared], name: str, values: Sequence[Any]) -> str:
    """MIoU over the values of one setting: a dot for each training, whatever the others were."""
    dots = [(g.variation[name], 100 * m, g) for g in groups for m in g.mious]
    low, high = min(m for _, m, _ in dots), max(m for _, m, _ in dots)
    margin = max(0.5, 0.08 * (high - low))
    low, high = max(0.0, low - margin), min(100.0, high + margin)
    places = _places(values)
    parts = [
        f'<line x1="{LEFT}" y1="{TOP + HEIGHT}" x2="{LEFT + WIDTH}" y2="{TOP + HEIGHT}"/>'
        f'<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{TOP + HEIGHT}"/>'
    ]
    for value, miou, group in dots:
        x, y = places[repr(value)], TOP + HEIGHT * (high - miou) / (high - low)
        others = ", ".join(f"{k} {value_text(v)}" for k, v in short(group.variation).items())
        parts.append(
            f"<g><title>{escape(others)}: {miou:.2f} %</title>"
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="cell" fill-opacity="0.75"/></g>'
        )
    for miou in (low, high):
        y = TOP + HEIGHT * (high - miou) / (high - low)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{miou:.1f}</text>')
    last = -math.inf
    for value in values:
        x, text = places[repr(value)], value_text(value)
        width = 7 * cell_len(text)
        if x - width / 2 > last:
            parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">'
                         f"{escape(text)}</text>")  # fmt: skip
            last = x + width / 2 + 6
    return svg(LEFT + WIDTH + 30, TOP + HEIGHT + 26, f"mIoU over {name}", parts, natural=True)


def _places(values: Sequence[Any]) -> dict[str, float]:
    """The x of each value: numbers to scale, others evenly; over the logarithm as ranges are."""
    if all(map(_is_number, values)):
        logarithmic = values[0] > 0 and values[-1] / values[0] >= LOGARITHMIC
        spots = [math.log(v) if logarithmic else float(v) for v in values]
        shares = [0.04 + 0.92 * (v - spots[0]) / (spots[-1] - spots[0]) for v in spots]
    else:
        shares = [(i + 0.5) / len(values) for i in range(len(values))]
    return {repr(v): LEFT + WIDTH * share for v, share in zip(values, shares, strict=True)}
