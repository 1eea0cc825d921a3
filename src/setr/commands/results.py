"""`setr results`: our figures beside the paper's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from setr.arguments.choices import TableNumber
from setr.commands.parsing import parse
from setr.errors import OK, SetrError, UsageError
from setr.pages.results_tables import as_html, as_markdown, as_text
from setr.paper_results import collect, other_lines, paper_lines
from setr.processes.standard_streams import tell
from setr.writing import write_text

_SHORT = ("row", "setting", "paper", "ours", "difference", "recipe", "data", "seeds")


@dataclass(frozen=True)
class Arguments:
    """Collect finished runs into the paper's Tables 2 to 7.

    setr results --format markdown --output results.md
    """

    runs: Path = Path("runs")
    """Folder whose subfolders are runs."""
    table: TableNumber | None = None
    """One table only."""
    all: bool = False
    """Also show rows nobody has run here yet."""
    format: Literal["text", "markdown", "html"] = "text"
    """Form of the tables; text leaves out command, commit and hardware."""
    output: Path | None = None
    """File to write to instead of the terminal."""
    json: bool = False
    """Print the lines as JSON."""


def run(arguments: list[str]) -> int:
    """Print or write the tables."""
    given = parse(Arguments, arguments, "results")
    if not given.runs.is_dir() and not given.all:
        raise UsageError(f"{given.runs}: no such folder; --runs DIR, or --all for the paper's rows")
    runs = collect(given.runs)
    titles = {}
    for number, lines in paper_lines(runs, given.table).items():
        shown = [line for line in lines if given.all or line.ours]
        if shown:
            titles[f"Table {number}"] = shown
    others = other_lines(runs) if given.table is None else []
    if others:
        titles["Other recipes"] = others
    if not titles:
        found = f"no finished runs in {given.runs}; --all shows the paper's rows"
        if given.output:
            raise SetrError(f"{given.output}: not written: {found}")
        tell(found)
        if given.json:
            print("{}")
        return OK
    if given.json:
        text = json.dumps({title: [line._asdict() for line in v] for title, v in titles.items()})
    elif given.format == "text":
        text = as_text(titles, _SHORT)
    else:
        text = {"markdown": as_markdown, "html": as_html}[given.format](titles)
    if given.output:
        write_text(given.output, text.rstrip("\n") + "\n")
    else:
        print(text)
    return OK
