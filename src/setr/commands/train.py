"""`setr train RECIPE|CONFIG.YAML|RUN [options]`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from setr.cli import parse
from setr.config import Config
from setr.errors import OK, USAGE, SetrError
from setr.recipes import recipe
from setr.tables import figures_table


@dataclass(frozen=True)
class Arguments:
    """Train a recipe, a config.yaml, or continue a run folder."""

    resume: bool = False
    """Continue from the last saved state."""
    overwrite: bool = False
    """Replace an existing run."""
    json: bool = False
    """Print the final figures as JSON."""
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def run(arguments: list[str]) -> int:
    """Train; prints the figures of the validation split."""
    named = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if named is None and not {"-h", "--help"} & set(arguments):
        raise SetrError("train needs a recipe; `setr recipes` lists them", code=USAGE)
    default = Arguments(config=_named_config(named) if named else Config())
    rest = arguments[1:] if named else arguments
    given = parse(Arguments, rest, "train RECIPE", default=default)
    from setr.engine import train
    from setr.launch import is_first

    metrics = train(given.config, resume=given.resume, overwrite=given.overwrite)
    if not is_first():
        return OK
    print(json.dumps(metrics) if given.json else figures_table(metrics))
    return OK


def _named_config(name: str) -> Config:
    """Settings by recipe name, YAML file or run folder."""
    path = Path(name)
    if path.is_dir():
        return dataclasses.replace(Config.load(path / "config.yaml"), out=name)
    if path.suffix in (".yaml", ".yml"):
        return Config.load(path)
    return recipe(name)
