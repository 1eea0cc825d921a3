"""`setr sweep RECIPE --vary SETTING VALUES…`: train with several settings and compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from setr.arguments.options import Option, options_of
from setr.commands.mixed_words import parse_mixed
from setr.commands.parsing import typed_options
from setr.commands.train import parsed
from setr.config import Config
from setr.errors import FAILED, OK, UsageError
from setr.processes.standard_streams import tell

_OURS = {
    "--resume": "give the same command again",
    "--overwrite": "remove the folders of the trials, or choose another -o",
    "--estimate": "that is an option of `setr train`",
    "--train.seed": "give --seeds, and --first-seed for the first",
}
"""Options of `setr train` that have another form here."""


@dataclass(frozen=True)
class Arguments:
    """Train with several settings and compare them on the validation split.

    Each training is a run in a folder of its own. Give the same command again to continue, with
    further values to add to it, or in several processes to train on several GPUs. All options of
    `setr train` with a dot (`--train.steps 500`) may follow.

    setr sweep finetune --data.root photos --vary optim.lr 5e-5 1e-4 2e-4 --seeds 3
    setr sweep finetune --data.root photos --vary optim.lr 1e-5..1e-3 --trials 12 --median-stop
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Recipe, YAML file of settings, or run folder, as for `setr train`."""
    vary: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction,
                    tyro.conf.arg(metavar="SETTING VALUE…")] = ()  # fmt: skip
    """A setting and its values, or its range LOW..HIGH; a value of several words in quotes, of a
    switch true or false."""
    trials: int | None = None
    """This many combinations, spread evenly; needed with ranges. All if not given."""
    seeds: int = 1
    """Trainings of each combination."""
    first_seed: int = 0
    """Seed of the first; the others have the numbers after it."""
    median_stop: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """End a run when its mIoU falls behind the median of the others at the same step."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of the sweep; runs/sweep-RECIPE if not given."""
    json: bool = False
    """Print what results.json holds."""


def run(arguments: list[str]) -> int:
    """Train what is not trained yet; prints the settings, the best first."""
    given, settings = parse_mixed(Arguments, arguments, "sweep", "RECIPE", _OURS)
    config = parsed([given.recipe, *settings]).config
    vary = _values(given, settings)
    out = given.out or f"runs/sweep-{Path(given.recipe).stem}"
    config = config.replace({"train.seed": given.first_seed, "out": out})
    from setr.pages.sweep_page import as_json, sweep_text
    from setr.sweeping import sweep
    from setr.trials import compared

    trials = sweep(
        config, vary, trials=given.trials, seeds=given.seeds, median_stop=given.median_stop
    )
    print(json.dumps(as_json(trials)) if given.json else sweep_text(trials), flush=True)
    best = compared(trials)[0].best
    tell(f"written to {out}: report.html, results.csv, results.json")
    if best is not None:
        tell(
            f"the best model: {best.run}; its settings: {best.settings_file}; next: "
            f"setr eval {best.run} DATA --split test"
        )
    return FAILED if any(trial.problem for trial in trials) else OK


def _values(given: Arguments, settings: Sequence[str]) -> dict[str, Any]:
    """The varied settings with values of their types; ranges and unknown names stay text."""
    if not given.vary:
        raise UsageError(
            "--vary is missing; write setr sweep RECIPE --vary optim.lr 5e-5 1e-4 2e-4"
        )
    known = {option.dotted: option for option in options_of(Config)}
    typed, found = typed_options(settings), dict[str, Any]()
    for group in given.vary:
        if not group:
            raise UsageError("--vary: give a setting and its values, as --vary optim.lr 5e-5 1e-4")
        name, *texts = group
        name = name.removeprefix("--").replace("-", "_")
        option = known.get(name)
        if name in found:
            raise UsageError(f"--vary {name}: given twice; give all its values once")
        if option is not None and {*option.flags, option.negative} & typed:
            raise UsageError(f"{option.flags[0]}: is varied, too; give it once")
        is_range = len(texts) == 1 and ".." in texts[0]
        if option is None or is_range or not texts:
            found[name] = texts
        else:
            found[name] = [_value(given, settings, option, text) for text in texts]
    return found


def _value(given: Arguments, settings: Sequence[str], option: Option, text: str) -> Any:
    """A value as `setr train` reads it."""
    flag = option.flags[0]
    words = [flag, *text.split()]
    if option.is_switch:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"--vary {option.name} {text}: give true or false")
        words = [flag if text.lower() == "true" else option.negative]
    config = parsed([given.recipe, *settings, *words]).config
    part, _, field = option.dotted.rpartition(".")
    return getattr(getattr(config, part) if part else config, field)
