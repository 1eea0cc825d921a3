"""The files written for one result: which kinds, under which names.

kinds = parse_kinds("mask,overlay,geojson")
written = write(result, Path("out/street"), kinds)   # street.png, street_overlay.png, …
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from setr._extras import import_extra
from setr.errors import UsageError
from setr.prediction.kinds import KINDS, options_of
from setr.prediction.rasters import RASTER_KINDS
from setr.result import Result

NAME_MAX = 255
"""Bytes in a file name, on every common file system."""


def parse_kinds(text: str) -> tuple[str, ...]:
    """Kinds joined with commas -> those kinds, each once; `palette` is another word for `mask`.

    Raises:
        SetrError: an unknown kind, or none; a kind whose extra is missing.
    """
    named = [kind.strip() for kind in text.split(",")]
    kinds = tuple(dict.fromkeys("mask" if kind == "palette" else kind for kind in named))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        known = ", ".join([*KINDS, "palette"])
        raise UsageError(f"--save {unknown[0]}: choose from {known}")
    if "gpkg" in kinds:
        import_extra("pyogrio", "geo", "--save gpkg")
    return kinds


def with_ending(stem: Path, ending: str) -> Path:
    """The stem with an ending; a name above 255 bytes is cut and gets part of its hash."""
    name = os.fsencode(stem.name)
    if len(name) + len(ending) <= NAME_MAX:
        return stem.with_name(stem.name + ending)
    mark = f"~{hashlib.sha256(name).hexdigest()[:8]}{ending}"
    return stem.with_name(name[: NAME_MAX - len(mark)].decode(errors="ignore") + mark)


def write(result: Result, stem: Path, kinds: Iterable[str], **options: Any) -> list[Path]:
    """Write the outputs of one result; every file appears when complete.

    Args:
        stem: output folder and name without ending; folders are made.
        kinds: of `KINDS`, as `parse_kinds` gives them; mask and confidence of a georeferenced
            raster are GeoTIFF files.
        options: of `kinds.OPTIONS`; each is for the kinds that have it.

    Returns:
        The files, in the order of the kinds.

    Raises:
        SetrError: a file that cannot be written.
    """
    endings = KINDS if result.geo is None else {**KINDS, **RASTER_KINDS}
    written = [with_ending(stem, endings[kind]) for kind in kinds]
    for kind, path in zip(kinds, written, strict=True):
        result.save(path, kind, **options_of(kind, options))
    return written
