"""Which outcomes of an earlier run still hold.

As with `make`: an outcome holds while the model, the settings and the input are what they were and
its files are there. A run's name stands for model and settings; every row carries it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from setr import __version__
from setr.batch import Task
from setr.hub import FILES
from setr.manifest import Row
from setr.remote import fetch
from setr.storage import Storage


def run_name(model: str, settings: Sequence[Any]) -> str:
    """Changes with the model's files and with the settings.

    Args:
        model: as `setr.load` takes it.
        settings: what else decides the outputs, as plain values.
    """
    digest = hashlib.sha256(json.dumps([__version__, *settings]).encode())
    for path in _model_files(model):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def settled(
    tasks: Sequence[Task], storage: Storage, run: str, *, retry: bool
) -> Callable[[Row], bool]:
    """Whether a row still holds; rows of images that are not among the tasks do.

    Args:
        tasks: of this run.
        storage: the output folder.
        run: its name.
        retry: failures do not hold.
    """
    wanted = {task.item.name: task for task in tasks}

    def holds(row: Row) -> bool:
        task = wanted.get(row["name"])
        if task is None:
            return True
        if (row["run"], row.get("stamp"), row.get("output")) != (
            run,
            task.item.stamp,
            task.output,
        ):
            return False
        if row["status"] == "failed":
            return not retry
        return all(map(storage.exists, [row["pack"][0]] if "pack" in row else row["files"]))

    return holds


def _model_files(model: str) -> list[Path]:
    path = Path(model)
    if path.is_file():
        weights = path.with_suffix(".bin")  # of OpenVINO
        return [path, *([weights] if weights != path and weights.is_file() else [])]
    folder = path if path.is_dir() or model.count("/") != 1 else fetch(model, FILES)
    return [p for name in ("config.json", "model.safetensors") if (p := folder / name).is_file()]
