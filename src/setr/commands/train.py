"""`setr train RECIPE|CONFIG.YAML|RUN [options]`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from setr.arguments.options import options_of
from setr.arguments.usage import assigned
from setr.commands.parsing import parse, typed_options
from setr.config import Config
from setr.errors import OK, SetrError, UsageError
from setr.pages.tables import figures_table
from setr.processes.standard_streams import tell
from setr.training.named_config import named_config


@dataclass(frozen=True)
class Arguments:
    """Train a recipe, a config.yaml, or continue a run folder.

    RECIPE is a name that `setr recipes` lists (finetune for your own data), a YAML file of
    settings, or the folder of a run. Its settings are the defaults shown after its name.

    setr train finetune --data.root photos --model.pretrained lvd142m --out runs/mine
    setr train runs/mine --resume
    setr train finetune --help
    """

    resume: bool = False
    """Continue from the last saved state."""
    overwrite: bool = False
    """Replace an existing run."""
    estimate: bool = False
    """Print the memory the run will need, and train nothing."""
    json: bool = False
    """Print the figures as JSON."""
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def run(arguments: list[str]) -> int:
    """Train; prints the figures of the validation split."""
    given = parsed(arguments)
    if given.estimate:
        return _estimate(given.config, as_json=given.json)
    from setr.engine import train
    from setr.processes.launch import is_first

    metrics = train(given.config, resume=given.resume, overwrite=given.overwrite)
    if not is_first():
        return OK
    print(json.dumps(metrics) if given.json else figures_table(metrics))
    out = shlex.quote(str(given.config.out))
    tell(
        f"written to {out}; next: setr eval {out} DATA, setr predict {out} IMAGES -o OUT, "
        f"setr serve {out}"
    )
    return OK


def parsed(arguments: list[str]) -> Arguments:
    """The options, and the settings that result from the recipe and the options."""
    named, rest = _split(arguments)
    written = assigned(named or "", options_of(Arguments), "train RECIPE")
    if named and written and not Path(named).is_dir():
        raise UsageError(written)
    config = named_config(named) if named else Config()
    default = Arguments(config=_without_length(config, rest))
    return parse(Arguments, rest, "train RECIPE", default=default)


def _split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split the arguments into what to train and the options; only switches may come before it.

    Raises:
        SetrError: nothing to train is named, and --help is not given.
    """
    switches = {f"--{f.name}" for f in dataclasses.fields(Arguments) if f.name != "config"}
    first = next((word for word in arguments if word not in switches), None)
    if first and not first.startswith("-"):
        place = arguments.index(first)
        return first, arguments[:place] + arguments[place + 1 :]
    if {"-h", "--help"} & set(arguments):
        return None, arguments
    before = f" before {first}" if first else ""
    raise UsageError(
        f"train needs a recipe{before} (or a config.yaml, or a run folder to --resume); "
        "`setr recipes` lists them"
    )


def _without_length(config: Config, words: list[str]) -> Config:
    """The settings with their steps reset where epochs are typed, and the other way round."""
    typed = typed_options(words)
    lengths = {"train.steps": 1, "train.epochs": 1.0}
    given = {name: length for name, length in lengths.items() if f"--{name}" in typed}
    if len(given) != 1 or {"-h", "--help"} & typed:  # none, or both, which the settings refuse
        return config
    return config.replace(given)


def _estimate(config: Config, *, as_json: bool) -> int:
    """Memory by part, on the device the run would take."""
    from setr.distributed import device
    from setr.estimate import forecast, forecast_text
    from setr.training.normalisation import with_channels

    num_classes, channels = _shape_of_data(config)
    config = with_channels(config, channels)
    values = forecast(config, num_classes, device(config.train.device))
    print(json.dumps(values) if as_json else forecast_text(values))
    return OK


def _shape_of_data(config: Config) -> tuple[int, int]:
    """Classes and channels of the data, or of the data set it is known as, if it is not here."""
    from setr.datasets import open_dataset
    from setr.labels import known_labels

    data = config.data
    try:
        dataset = open_dataset(data.root, data.train_split, data.labels)
        return len(dataset.labels.classes), dataset.channels
    except SetrError:
        if data.labels is None:
            raise
        return len(known_labels(data.labels).classes), len(config.model.mean)
