"""The tables as Markdown, from the records: means and sample standard deviations over seeds."""

from __future__ import annotations

from manifest import Row
from store import Record, Store, mean, spread

HEAD = ("", "val", "test SS", "test MS", "gain", "steps", "s/step", "memory GB", "train min",
        "seeds", "pretrained", "hardware", "commit", "command")  # fmt: skip
NOTE = (
    "mIoU in percent, 11 classes, 480x360; mean ± sample standard deviation over seeds. SS "
    "single-scale, MS six scales and flip. `val` is the validation clip, by which weights and "
    "settings were chosen; `test` was run once per run. A gain is on test SS over the row it "
    "names. Memory is the peak of the device's allocator (of the process on a CPU). Time of a step "
    "and memory are those of a trial, alone on the machine, where one was made; `shared` says that "
    "other runs ran beside it. The command is that of the first seed.\n"
)
TITLES = {
    "main": "Main result",
    "recipes": "The recipes as they are",
    "steps": "What the field knows, one switch at a time",
    "questions": "The paper's questions",
    "rivals": "Rivals on the same card, data and budget",
}


def markdown(tables: dict[str, list[Row]], store: Store) -> str:
    """All tables that have a finished run."""
    known = [row for rows in tables.values() for row in rows]
    parts = [NOTE]
    for name, rows in tables.items():
        lines = [_line(row, known, store) for row in rows if store.of(row)]
        if lines:
            parts.append(f"### {TITLES[name]}\n")
            parts.append("\n".join([_row(HEAD), _row(["---"] * len(HEAD)), *lines]) + "\n")
    return "\n".join(parts)


def _line(row: Row, known: list[Row], store: Store) -> str:
    records = store.of(row)
    costs, shared = records, any(record["jobs"] > 1 for record in records)
    trial = store.trial(row)
    if trial and {trial["hardware"]} == {record["hardware"] for record in records}:
        costs, shared = [trial], False
    return _row(
        [
            row.title,
            _figure(store.score(row, "val")),
            _figure(store.score(row)),
            _figure(store.score(row, protocol="multi_scale")),
            _gain(row, known, store),
            _each(records, "steps"),
            _mean(costs, "seconds_per_step", 1, 3) + (" (shared)" if shared else ""),
            _mean(costs, "peak_mb", 1024, 1),
            _mean(records, "train_seconds", 60, 1),
            _each(records, "seed"),
            _each(records, "pretrained"),
            _each(records, "hardware"),
            _each(records, "commit"),
            f"`{records[0]['command']}`",
        ]
    )


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _figure(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {spread(values):.2f}" if len(values) > 1 else "")


def _gain(row: Row, known: list[Row], store: Store) -> str:
    reference = next((r for r in known if r.name == row.against), None)
    if reference is None:
        return ""
    ours, theirs = mean(store.score(row)), mean(store.score(reference))
    if ours is None or theirs is None:
        return ""
    return f"{ours - theirs:+.2f} over {reference.title.removeprefix('+ ')}"


def _mean(records: list[Record], key: str, unit: float, digits: int) -> str:
    return f"{mean([record[key] for record in records]) / unit:.{digits}f}"  # type: ignore[operator]


def _each(records: list[Record], key: str) -> str:
    return ", ".join(dict.fromkeys(str(record[key] or "none") if key != "seed" else str(record[key])
                                   for record in records))  # fmt: skip
