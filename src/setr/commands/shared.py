"""Arguments that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from setr.errors import UsageError

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
    ends = [Path(path).name for path in paths]
    return ends if len(set(ends)) == len(ends) else list(paths)
