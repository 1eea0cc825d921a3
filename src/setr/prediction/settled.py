"""What a run is to write, and which outcomes of an earlier run still hold.

As with `make`: an outcome holds while the model, the settings and the input are what they were and
its files are there. A run's name stands for model and settings; every row carries it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from setr import __version__
from setr.batch import Finish, Task
from setr.hub import FILES
from setr.prediction.filming import FILMS
from setr.prediction.inputs import Item, file_stamp
from setr.prediction.kinds import KINDS
from setr.prediction.manifest import Row
from setr.prediction.outputs import parse_kinds, with_ending
from setr.prediction.rasters import RASTER_KINDS
from setr.prediction.streams import Stream, stems
from setr.reading.remote import fetch, is_repository
from setr.reading.storage import Storage
from setr.reading.urls import is_url


def run_names(model: str) -> Callable[[Sequence[Any]], str]:
    """Names for runs of a model, which change with its files and with the settings.

    Args:
        model: as `setr.load` takes it; its files are read once.

    Returns:
        A function of what else decides the outputs, as plain values.
    """
    digest = hashlib.sha256(__version__.encode())
    for path in _model_files(model):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)

    def name(settings: Sequence[Any]) -> str:
        whole = digest.copy()
        whole.update(json.dumps(settings).encode())
        return whole.hexdigest()[:16]

    return name


def finishes(
    out: str,
    save: str | None,
    name: Callable[[Sequence[Any]], str],
    settings: Sequence[Any],
    raster_settings: Sequence[Any],
    *,
    packed: bool,
    polygons: dict[str, Any],
) -> Callable[[Stream | None], Finish]:
    """How results become files, by the stream they come from; None for images.

    Args:
        out: output folder or address.
        save: kinds joined with commas; None is `mask`, and `overlay` of a video.
        name: of `run_names`.
        settings: what else changes outputs, as plain values.
        raster_settings: what changes those of GeoTIFF files.
        packed: see `Finish`.
        polygons: see `Finish`.
    """

    def finish(default: str, *more: Any) -> Finish:
        kinds = parse_kinds(save or default)
        run = name([sorted(kinds), polygons, *settings, *more])
        return Finish(out, kinds, run, packed, polygons)

    image, video, raster = finish("mask"), finish("overlay"), finish("mask", *raster_settings)
    return lambda stream: image if stream is None else video if stream.is_video else raster


def stream_tasks(streams: Sequence[Stream], out: Path, taken: Sequence[str]) -> dict[Task, Stream]:
    """Videos, GeoTIFF files and addresses as tasks, none of whose outputs has a name in use."""
    places = stems(streams, out, [out / name for name in taken]) if streams else []
    return {
        Task(
            Item(str(stream.below), stream.source, file_stamp(stream.source)),
            place.relative_to(out).as_posix(),
        ): stream
        for stream, place in zip(streams, places, strict=True)
    }


def files_of(
    task: Task, stream: Stream | None, finish: Callable[[Stream | None], Finish]
) -> list[str]:
    """What comes of a task: files below the output folder, and the folder of a video's frames."""
    how = finish(stream)
    if stream is None:
        return [how.name(task.output, kind) for kind in how.kinds]
    if stream.is_video:
        endings = {kind: FILMS[kind][0] if kind in FILMS else "" for kind in KINDS}
    else:
        endings = KINDS if is_url(stream.source) else {**KINDS, **RASTER_KINDS}
    return [with_ending(Path(task.output), endings[kind]).as_posix() for kind in how.kinds]


def settled(
    runs: Mapping[Task, str], storage: Storage, limits: Any, *, retry: bool
) -> Callable[[Row], bool]:
    """Whether a row still holds; rows of images that are not among the tasks do.

    Args:
        runs: the run's name by task.
        storage: the output folder.
        limits: what decides, besides, which images fail; a failure under others does not hold.
        retry: failures do not hold.
    """
    wanted = {task.item.name: task for task in runs}

    def holds(row: Row) -> bool:
        task = wanted.get(row["name"])
        if task is None:
            return True
        if (row["run"], row.get("stamp"), row.get("output")) != (
            runs[task],
            task.item.stamp,
            task.output,
        ):
            return False
        if row["status"] == "failed":
            return not retry and row.get("limits") == limits
        return all(map(storage.exists, [row["pack"][0]] if "pack" in row else row["files"]))

    return holds


def _model_files(model: str) -> list[Path]:
    path = Path(model)
    if path.is_file():
        weights = path.with_suffix(".bin")  # of OpenVINO
        return [path, *([weights] if weights != path and weights.is_file() else [])]
    folder = fetch(model, FILES) if is_repository(model) else path
    return [p for name in ("config.json", "model.safetensors") if (p := folder / name).is_file()]
