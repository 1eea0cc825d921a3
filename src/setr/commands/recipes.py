"""`setr recipes [--table N]`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from setr.cli import parse
from setr.errors import OK, USAGE, SetrError
from setr.paper_tables import TABLES
from setr.recipes import list_recipes
from setr.results import as_text, collect, paper_lines


@dataclass(frozen=True)
class Arguments:
    """List the named experiments, or a table of the paper with the recipe of every row."""

    table: int | None = None
    """A table of the paper, 2 to 7: rows, the paper's figures, ours where measured, commands."""
    runs: Path = Path("runs")
    """Folder of finished runs, for our figures."""
    json: bool = False
    """Print as JSON."""


def run(arguments: list[str]) -> int:
    """Print one recipe, or one row, a line."""
    given = parse(Arguments, arguments, "recipes")
    if given.table is not None:
        return _print_table(given)
    recipes = list_recipes()
    if given.json:
        print(json.dumps(recipes))
        return OK
    width = max(map(len, recipes))
    for name, text in recipes.items():
        print(f"{name:<{width}}  {text}")
    return OK


def _print_table(given: Arguments) -> int:
    if given.table not in TABLES:
        raise SetrError(
            f"--table {given.table}: the paper's results are Tables 2 to 7 (Table 1 lists the two "
            "encoders: `setr models '*_base'`, `setr models '*_large'`)",
            code=USAGE,
        )
    lines = paper_lines(collect(given.runs), given.table)[given.table]
    if given.json:
        print(json.dumps([line._asdict() for line in lines]))
    else:
        columns = ("row", "setting", "paper", "ours", "command")
        print(as_text({f"Table {given.table}": lines}, columns))
    return OK
