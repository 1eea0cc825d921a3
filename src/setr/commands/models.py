"""`setr models [PATTERN]`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from setr.cli import parse
from setr.errors import OK, USAGE, SetrError


@dataclass(frozen=True)
class Arguments:
    """List the named models."""

    pattern: tyro.conf.Positional[str] = "*"
    """Shell pattern, for example '*pup*'."""


def run(arguments: list[str]) -> int:
    """Print one model name a line."""
    given = parse(Arguments, arguments, "models")
    from setr.catalog import list_models

    names = list_models(given.pattern)
    if not names:
        raise SetrError(f"no model matches '{given.pattern}'; `setr models` lists all", code=USAGE)
    print("\n".join(names))
    return OK
