"""What a run will write, and which outcomes of earlier runs are still up to date.

As with `make`, an outcome is up to date while model, settings and input are unchanged and its files
exist. Model and settings are hashed into a run's name, which every row of the manifest has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from setr import __version__
from setr.batch import OutputWriter, Task
from setr.hub import FILES
from setr.model_sources import sources_of
from setr.prediction.filming import FILMS
from setr.prediction.inputs import Item, file_stamp
from setr.prediction.kinds import KINDS
from setr.prediction.manifest import Row
from setr.prediction.outputs import with_ending
from setr.prediction.rasters import RASTER_KINDS
from setr.prediction.streams import Stream, stream_names
from setr.reading.remote import fetch, is_repository
from setr.reading.storage import Storage
from setr.reading.urls import is_url


def run_names(model: str) -> Callable[[Sequence[Any]], str]:
    """Names for runs of a model: hashes of its files and of the settings.

    Args:
        model: as `setr.load` takes it; its files are read once.

    Returns:
        A function from the settings that affect outputs, as plain values, to the name.
    """
    digest = hashlib.sha256(__version__.encode())
    for path in chain.from_iterable(map(_model_files, sources_of(model))):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)

    def name(settings: Sequence[Any]) -> str:
        whole = digest.copy()
        whole.update(json.dumps(settings).encode())
        return whole.hexdigest()[:16]

    return name


def stream_tasks(streams: Sequence[Stream], taken: Sequence[str]) -> dict[Task, Stream]:
    """Videos, GeoTIFF files and addresses as tasks, with output names that are not taken."""
    names = stream_names(streams, taken)
    items = (Item(str(s.below), s.shown, file_stamp(s.source)) for s in streams)
    return dict(zip(map(Task, items, names), streams, strict=True))


def files_of(
    task: Task, stream: Stream | None, writer_for: Callable[[Stream | None], OutputWriter]
) -> list[str]:
    """The outputs of a task below the output folder: files, and the folder of a video's frames."""
    writer = writer_for(stream)
    if stream is None:
        return [writer.name(task.output, kind) for kind in writer.kinds]
    if stream.is_video:
        endings = {kind: FILMS[kind][0] if kind in FILMS else "" for kind in KINDS}
    else:
        endings = KINDS if is_url(stream.source) else {**KINDS, **RASTER_KINDS}
    return [with_ending(Path(task.output), endings[kind]).as_posix() for kind in writer.kinds]


def settled(
    runs: Mapping[Task, str], storage: Storage, limits: Any, *, retry: bool
) -> Callable[[Row], bool]:
    """Whether a row is up to date; rows of images that are not among the tasks are.

    Args:
        runs: the run's name by task.
        storage: the output folder.
        limits: settings that decide which images fail; failures under other limits are outdated.
        retry: treat all failures as outdated.
    """
    wanted = {task.item.name: task for task in runs}

    def is_settled(row: Row) -> bool:
        task = wanted.get(row["name"])
        if task is None:
            return True
        made = row["run"], row.get("stamp"), row.get("output")
        if made != (runs[task], task.item.stamp, task.output):
            return False
        if row["status"] == "failed":
            return not retry and row.get("limits") == limits
        files = [row["pack"][0]] if "pack" in row else row.get("files")
        return files is not None and all(map(storage.exists, files))

    return is_settled


def _model_files(model: str) -> list[Path]:
    path = Path(model)
    if path.is_file():
        weights = path.with_suffix(".bin")  # of OpenVINO
        return [path, *([weights] if weights != path and weights.is_file() else [])]
    folder = fetch(model, FILES) if is_repository(model) else path
    return [p for name in ("config.json", "model.safetensors") if (p := folder / name).is_file()]
