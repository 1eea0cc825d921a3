"""What each verb of the command line does: parse its arguments, call the library, print."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from setr import recipes as recipe_table
from setr.cli import parse
from setr.config import Config
from setr.errors import OK, USAGE, SetrError


@dataclass(frozen=True)
class TrainArguments:
    """Train a recipe, a config.yaml, or continue a run folder."""

    resume: bool = False
    """Continue from the last saved state."""
    overwrite: bool = False
    """Replace an existing run."""
    json: bool = False
    """Print the final figures as JSON."""
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def train(args: list[str]) -> int:
    """`setr train RECIPE|CONFIG.YAML|RUN [options]`."""
    named = args[0] if args and not args[0].startswith("-") else None
    if named is None and not {"-h", "--help"} & set(args):
        raise SetrError("train needs a recipe; `setr recipes` lists them", code=USAGE)
    default = _named_config(named) if named else Config()
    given = parse(
        TrainArguments, args[1:] if named else args, "train RECIPE", default=TrainArguments(config=default)
    )
    from setr.engine import train as run

    metrics = run(given.config, resume=given.resume, overwrite=given.overwrite)
    _print_metrics(metrics, given.json)
    return OK


def _named_config(name: str) -> Config:
    """Settings by recipe name, YAML file or run folder."""
    path = Path(name)
    if path.is_dir():
        return dataclasses.replace(Config.load(path / "config.yaml"), out=name)
    if path.suffix in (".yaml", ".yml"):
        return Config.load(path)
    return recipe_table.recipe(name)


def _print_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(metrics))
        return
    print(figures_table(metrics), file=sys.stdout)


def figures_table(metrics: dict[str, Any]) -> str:
    """Per-class IoU and the means of each protocol, in percent, as text columns."""
    columns = {k: v for k, v in metrics.items() if isinstance(v, dict)}
    names = list(next(iter(columns.values()))["iou"])
    width = max(map(len, [*names, "mean accuracy"]))

    def row(label: str, values: list[float | None]) -> str:
        shown = ["    n/a" if v is None else f"{100 * v:7.2f}" for v in values]
        return f"{label:<{width}}  " + "  ".join(f"{v:>12}" for v in shown)

    lines = [f"{'IoU %':<{width}}  " + "  ".join(f"{k.replace('_', ' '):>12}" for k in columns)]
    lines += [row(name, [c["iou"][name] for c in columns.values()]) for name in names]
    lines.append("-" * len(lines[0]))
    for key in ("miou", "pixel_accuracy", "mean_accuracy"):
        label = "mIoU" if key == "miou" else key.replace("_", " ")
        lines.append(row(label, [c[key] for c in columns.values()]))
    return "\n".join(lines)


def recipes(args: list[str]) -> int:
    """`setr recipes`."""
    for name, text in recipe_table.list_recipes().items():
        print(f"{name:<32}  {text}")
    return OK
