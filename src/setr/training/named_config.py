"""Settings by name, for `setr train` and `setr.train`: a recipe, a YAML file, or a run folder."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from setr.config import Config
from setr.errors import SetrError, UsageError
from setr.reading.files import require_alive
from setr.reading.parsed import yaml_of
from setr.recipes import list_recipes, nearest_recipes, recipe
from setr.training.settings import flat


def named_config(name: str) -> Config:
    """The settings of a recipe, of a YAML file, or of a run folder, with `out` set to that folder.

    What a YAML file leaves out is as in the recipe that it names, if any.

    Raises:
        SetrError: an unknown name, or a file or folder without settings; suggests what to give.
    """
    path = Path(name)
    require_alive(path)
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{name}: not a run folder; {_train_on(name)}")
        return dataclasses.replace(Config.load(path / "config.yaml"), out=name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return _completed(Config.load(path), path)
        except SetrError as error:
            if not _describes_data(path):
                raise
            problem = f"{name}: describes a data set, not a run; {_train_on(name)}"
            raise SetrError(problem, code=error.code) from None
    if path.suffix == ".py":
        near = nearest_recipes(path.stem, words=3)
        fix = f"the nearest recipes are {', '.join(near)}" if near else "`setr recipes` lists ours"
        raise UsageError(
            f"{name}: config files of other toolkits are not supported; {fix}, and `setr convert` "
            "reads checkpoints without such a file"
        )
    if path.name != name:  # recipes have no folders in their names
        raise UsageError(f"{name}: no such run folder or settings file")
    return recipe(name)


def _completed(config: Config, path: Path) -> Config:
    """The settings of a file, and for those that it does not have, its recipe's."""
    if config.recipe not in list_recipes():
        return config
    values, settings = yaml_of(path.read_text(encoding="utf-8")), flat(config)
    given = [name for name in settings if _holds(values, name)]
    return recipe(config.recipe).replace({name: settings[name] for name in given})


def _holds(values: dict[str, Any], name: str) -> bool:
    part, _, key = name.partition(".")
    return key in values.get(part, {}) if key else part in values


def _train_on(data: str) -> str:
    named = shlex.quote(data)
    return f"to train on this data: setr auto {named}, or setr train finetune --data.root {named}"


def _describes_data(path: Path) -> bool:
    from setr.data.data_yaml import read_description

    try:
        return bool(read_description(path))
    except SetrError:
        return False
