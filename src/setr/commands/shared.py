"""Arguments that several commands share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from setr.errors import UsageError
from setr.model_sources import name_of

MAX_PIXELS = 150_000_000
"""Of an image, as where files are read."""

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Models = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="MODELS…", help_behavior_hint="(required)"),
]
Data = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Scales = Annotated[
    tuple[float, ...] | None,
    tyro.conf.arg(help="Factors on the image, in place of the protocol's."),
]
Flip = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(help="Average with the mirrored image, whatever the protocol."),
]
NoFlip = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(help="Do not average with the mirrored image, whatever the protocol."),
]
Device = Annotated[str, tyro.conf.arg(help="auto, cpu, cuda, cuda:1, …")]
Words = Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: none)")]


def mirrored(*, flip: bool, no_flip: bool) -> bool | None:
    """Whether to average with the mirrored image; None leaves it to the protocol.

    Raises:
        SetrError: both options were given.
    """
    if flip and no_flip:
        raise UsageError("--flip and --no-flip: give one of them")
    return flip or (False if no_flip else None)


def model_names(paths: Sequence[str]) -> list[str]:
    """Names of models: the last part of each path, or the whole paths where two end alike."""
    ends = [name_of(path) for path in paths]
    return ends if len(set(ends)) == len(ends) else list(paths)


def results_folder(model: str, name: str) -> Path:
    """Folder for results about a model, if none was given: in its directory, or in `runs`."""
    path = Path(model)
    home = path if path.is_dir() else Path("runs", name_of(model))
    if path.is_file():  # many are called model.onnx
        home = home.with_name(f"{path.absolute().parent.name}-{path.name}".lstrip("-"))
    return home / name


def require_size(size: tuple[int, int] | None) -> None:
    """Refuse --size without pixels, or with more than images may have."""
    if size is not None and not (min(size) > 0 and math.prod(size) <= MAX_PIXELS):
        raise UsageError(
            f"--size {size[0]} {size[1]}: give at least 1 each, and at most {MAX_PIXELS:,} pixels"
        )


def require_apart(out: Path, usual: str = "") -> None:
    """Refuse a model's own folder, which has a metrics.json and a report.html from training.

    Args:
        out: folder for results.
        usual: its name in the model's folder if none was given; empty where one must be.
    """
    if (out / "config.json").exists():
        raise UsageError(
            f"-o {out}: holds a model, whose own metrics.json and report.html the results would "
            f"replace; choose another folder{usual and f', or leave -o out for {usual} in it'}"
        )
