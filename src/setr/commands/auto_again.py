"""What `setr auto` does in a run folder that holds a run already: continue it, or leave it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setr.commands.parsing import typed_options
from setr.commands.train import parsed
from setr.config import Config
from setr.errors import UsageError
from setr.reading.parsed import table_in
from setr.training.settings import changed

_EPOCHS = "--train.epochs"
_LENGTH = {"train.steps", "train.patience"}
"""Settings that may give a finished run more steps."""


def is_finished(out: Path, data: str, settings: Sequence[str]) -> bool:
    """Whether the run in a folder has finished, with these settings and data.

    Args:
        data: the data set, as other commands take it.
        settings: options of `setr train` with their values, from `in_steps`.

    Raises:
        SetrError: it has finished with other settings or data, and further steps do not change
            that.
    """
    from setr.checkpoint import states
    from setr.training.runfolder import LAST

    if not (out / "metrics.json").is_file():
        return False
    if not (out / "config.yaml").is_file():
        return True
    trained = Config.load(out / "config.yaml")
    found = changed(trained, parsed([str(out), *settings]).config)
    if is_other_data(trained.data.root, data) and not _is_gone(trained.data.root):
        found["data.root"] = (trained.data.root, data)
    if not found:
        return True
    _, steps = found.get("train.steps", (0, trained.train.steps))
    if found.keys() <= _LENGTH and steps > _steps(out) and states(out / LAST):
        return False
    pairs = (f"{name} {_text(old)}, not {_text(new)}" for name, (old, new) in found.items())
    raise UsageError(
        f"{out}: was trained with {'; '.join(pairs)}; add --overwrite to train it again, or choose "
        "another folder with -o"
    )


def in_steps(out: Path, data: str, settings: Sequence[str]) -> list[str]:
    """The settings, with a length in epochs as the steps that it is for the run in a folder.

    A run that has begun takes steps only, since its schedule must not move with its data.
    """
    from setr.datasets import open_dataset
    from setr.training.repeats import with_repeats
    from setr.training.resolved import with_steps
    from setr.training.splits import trained_part

    if _EPOCHS not in typed_options(settings) or not (out / "config.yaml").is_file():
        return list(settings)
    config = parsed([str(out), *settings]).config
    train = open_dataset(data, config.data.train_split, config.data.labels)
    train = with_repeats(config, trained_part(train, config.data.fraction))
    kept, words = list[str](), iter(settings)
    for word in words:
        if not typed_options([word]) & {_EPOCHS}:
            kept.append(word)
        elif "=" not in word:
            next(words, None)  # its value
    return [*kept, "--train.steps", str(with_steps(config, len(train)).train.steps)]


def is_other_data(root: str, data: str) -> bool:
    """Whether a data set is not the one of a run, `root`, however both are written."""
    return root != data and _place(root) != _place(data)


def _place(data: str) -> Path:
    """The folder of a data set, if its description is in it."""
    path = Path(data).resolve()
    return path.parent if path.name in ("data.yaml", "data.yml", "setr.yaml") else path


def _is_gone(root: str) -> bool:
    """Whether it is a path, not a name as `hf:…`, where nothing is: the data may have moved."""
    return ":" not in root and root != "scenes" and not Path(root).exists()


def _steps(out: Path) -> int:
    """Steps that the finished run has trained; 0 if its figures are damaged."""
    steps = table_in(out / "metrics.json").get("steps")
    return steps if isinstance(steps, int) else 0


def _text(value: Any) -> str:
    """A value as typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
