"""`setr recipes`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from setr.cli import parse
from setr.errors import OK
from setr.recipes import list_recipes


@dataclass(frozen=True)
class Arguments:
    """List the named experiments."""

    json: bool = False
    """Print names and descriptions as JSON."""


def run(arguments: list[str]) -> int:
    """Print one recipe a line."""
    given = parse(Arguments, arguments, "recipes")
    recipes = list_recipes()
    if given.json:
        print(json.dumps(recipes))
        return OK
    width = max(map(len, recipes))
    for name, text in recipes.items():
        print(f"{name:<{width}}  {text}")
    return OK
