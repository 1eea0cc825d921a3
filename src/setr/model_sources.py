"""Which models a source names: one, or several whose predictions are averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from setr.errors import UsageError
from setr.reading.urls import is_url


def sources_of(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """The models that a source names: of a list, or of a text its parts between commas.

    A part with `*`, `?` or `[` stands for the folders that it matches. An address is one model, and
    so is a path that exists.

    Raises:
        SetrError: an empty list, a pattern that matches no folder, or a model named twice.
    """
    if not isinstance(source, str | os.PathLike):
        parts = [os.fspath(part) for part in source]
    elif is_url(name := os.fspath(source)) or (name and not _is_several(name)):
        return [name]
    else:
        parts = [part for part in name.split(",") if part]
    found = []
    for part in parts:
        matches = [part]
        if has_magic(part) and not Path(part).exists():
            matches = sorted(path for path in glob(part) if Path(path, "config.json").is_file())
            if not matches:
                raise UsageError(f"{part}: no model directory matches this pattern")
        found += matches
    if not found or not all(found):
        raise UsageError(f"{source or repr(source)}: names no model; give the path or name of one")
    places = [os.path.realpath(one) if os.path.exists(one) else one for one in found]
    for number, one in enumerate(found):
        if places[number] in places[:number]:
            raise UsageError(f"{one}: names a model twice; give each model once")
    return found


def _is_several(source: str) -> bool:
    return ("," in source or has_magic(source)) and not Path(source).exists()


def name_of(source: str) -> str:
    """The last part of a model's path; of several models, these joined with `+`."""
    return "+".join(Path(one).name for one in sources_of(source))
