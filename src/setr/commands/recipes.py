"""`setr recipes [--table N]`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from setr.arguments.choices import TableNumber
from setr.commands.parsing import parse, require_default
from setr.errors import OK
from setr.pages.results_tables import as_text
from setr.pages.tables import aligned
from setr.paper_results import collect, paper_lines
from setr.recipes import list_recipes


@dataclass(frozen=True)
class Arguments:
    """List the named experiments, or a table of the paper with the recipe of every row.

    setr recipes --table 2
    """

    table: TableNumber | None = None
    """A table of results in the paper: rows, the paper's figures, ours where measured, commands.
    (Table 1 has the sizes of its two encoders: `setr models 'setr_*_base'`, `'setr_*_large'`.)"""
    runs: Path = Path("runs")
    """Folder of finished runs, for our figures."""
    json: bool = False
    """Print as JSON."""


def run(arguments: list[str]) -> int:
    """Print one recipe, or one row, a line."""
    given = parse(Arguments, arguments, "recipes")
    if given.table is not None:
        return _print_table(given)
    require_default(given, "does nothing without --table; add it, or leave this out", "runs")
    recipes = list_recipes()
    print(json.dumps(recipes) if given.json else "\n".join(aligned([*recipes.items()])))
    return OK


def _print_table(given: Arguments) -> int:
    (lines,) = paper_lines(collect(given.runs), given.table).values()
    if given.json:
        print(json.dumps([line._asdict() for line in lines]))
    else:
        columns = ("row", "setting", "paper", "ours", "command")
        print(as_text({f"Table {given.table}": lines}, columns))
    return OK
