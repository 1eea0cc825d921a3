"""What a run was given, as plain facts that can be compared and named.

Compared between the processes of a run at its start, and between a run and its resumption.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from setr import __version__
from setr.config import Config
from setr.datasets import Dataset
from setr.distributed import differences, say
from setr.errors import USAGE, SetrError
from setr.pairs import Pairs
from setr.settings import PER_PROCESS, flat

_SAMPLED = 64  # files whose size is compared


def run_facts(config: Config, *datasets: Dataset) -> dict[str, Any]:
    """Settings, versions, and what identifies the data without reading them all."""
    facts = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flat(config).items()
        if key not in PER_PROCESS
    }
    facts |= {"setr": __version__, "torch": torch.__version__.split("+")[0]}
    for dataset in datasets:
        facts |= {f"data.{dataset.split}.{k}": v for k, v in data_facts(dataset).items()}
    return facts


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """Classes, number and names of the files, and the sizes of some of them; not their times."""
    names = hashlib.sha256()
    for name in _names(dataset):
        names.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    sizes = []
    if isinstance(dataset.pairs, Pairs):
        step = max(1, len(dataset) // _SAMPLED)
        sizes = [_size(dataset.pairs[i].image) for i in range(0, len(dataset), step)]
    return {
        "classes": list(dataset.labels.classes),
        "pairs": len(dataset),
        "file names": names.hexdigest()[:16],
        "file sizes": hashlib.sha256(str(sizes).encode()).hexdigest()[:16],
    }


def _names(dataset: Dataset) -> Iterator[str]:
    """Folder and name of each image; what is above may differ between hosts."""
    if isinstance(dataset.pairs, Pairs):
        paths: Iterator[str] = (image for image, _ in dataset.pairs.names())
    else:
        paths = (str(pair.image) for pair in dataset.pairs)
    return ("/".join(path.split(os.sep)[-2:]) for path in paths)


def _size(path: Any) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def require_same_run(out: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue a run with another model or other data; name other changes.

    Raises:
        SetrError: what differs.
    """
    for kind, prefix in (("another model", "model."), ("other data or classes", "data.")):
        mine = {k: v for k, v in before.items() if _identity(k, prefix)}
        theirs = {k: v for k, v in now.items() if _identity(k, prefix)}
        if found := differences(mine, theirs):
            raise SetrError(f"{out}: is a run of {kind}: {found}; choose another --out", code=USAGE)
    if found := differences(before, now):
        say(f"warning: {out}: continues with other settings than it began with: {found}")


def _identity(key: str, prefix: str) -> bool:
    """Facts of the model, or of the files and classes (not how samples are augmented)."""
    return key.startswith(prefix) and (prefix == "model." or key.count(".") == 2)
