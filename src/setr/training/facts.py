"""The facts of a run: settings, versions and data, as JSON-serialisable values by name.

They are compared between the processes of a run at its start, and when a run is resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from setr import __version__
from setr.config import Config
from setr.data.dataset import Dataset
from setr.data.own_augmentation import Augment, described
from setr.data.pairs import Pair, Pairs
from setr.datasets import ShardDataset
from setr.distributed import say
from setr.errors import UsageError
from setr.processes.differences import differences
from setr.training.settings import PER_PROCESS, flat
from setr.wrapped import WrappedDataset

_VERSIONED = (ShardDataset, WrappedDataset)
_BAND_FACTS = ("bands", "value_range")  # facts that data sets without bands lack
AUGMENT, AUGMENT_VERSION = "augment", "augment.version"
_MIN_SAMPLED = 64  # at least this many file sizes are compared, if there are as many


def run_facts(config: Config, *datasets: Dataset, augment: Augment | None = None) -> dict[str, Any]:
    """Settings, versions, and facts that identify the data without reading all of them."""
    facts = _settings(config)
    facts |= {"setr": __version__, "torch": torch.__version__.split("+")[0]}
    facts |= _augmentation(augment)
    for dataset in datasets:
        facts |= {f"data.{dataset.split}.{k}": v for k, v in data_facts(dataset).items()}
    return facts


def _settings(config: Config) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flat(config).items()
        if key not in PER_PROCESS
    }


def _augmentation(augment: Augment | None) -> dict[str, Any]:
    """Whether there is an augmentation of the user's, and which."""
    if augment is None:
        return {AUGMENT: None, AUGMENT_VERSION: None}
    return {AUGMENT: "setr.train(augment=…)", AUGMENT_VERSION: described(augment)}


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """Classes and ids, number and names of the files, and sizes of some; no modification times.

    For shards the checksum of their index, which contains the checksums of all files; for samples
    from Python the version that the user gives.
    """
    names = hashlib.sha256()
    for image, _ in dataset.names():
        name = "/".join(image.split(os.sep)[-2:])  # the folders above may differ between hosts
        names.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    sampled: list[Pair] = []
    if isinstance(dataset.pairs, Pairs):
        step = max(1, len(dataset) // _MIN_SAMPLED)
        sampled = [dataset.pairs[i] for i in range(0, len(dataset), step)]
    labels = dataset.labels.to_dict()
    return {
        "classes": labels["classes"],
        "ids": labels["label_map"],
        "mask colours": labels.get("colour_map", {}),
        "pairs": len(dataset),
        "file names": names.hexdigest()[:16],
        "file sizes": _digest([_size(pair.image) for pair in sampled]),
        "mask sizes": _digest([_size(pair.mask) for pair in sampled]),
        "checksum": dataset.version if isinstance(dataset, _VERSIONED) else None,
        **(dataset.bands.to_dict() if dataset.bands else {}),
    }


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of the names and values of a module's tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def data_record(facts: dict[str, Any], train: Dataset, val: Dataset) -> dict[str, Any]:
    """The data set as recorded with a run's scores: name, classes, number of images, and a digest.

    Equal digests mean equal facts of both splits, wherever the files are.

    Args:
        facts: of the run, from `run_facts`.
    """
    own = {key: value for key, value in facts.items() if _is_data_fact(key)}
    text = json.dumps(own, sort_keys=True)
    return {
        "name": val.name,
        "classes": list(val.labels.classes),
        "train_images": len(train),
        "val_images": len(val),
        "digest": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def _digest(values: list[int]) -> str:
    return hashlib.sha256(str(values).encode()).hexdigest()[:16]


def _size(path: Path | None) -> int:
    try:
        return -1 if path is None else os.stat(path).st_size
    except OSError:
        return -1


def require_same_run(out: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a run is resumed with the same model, optimiser and data; warn of other changes.

    Facts that the version which started the run did not record are not compared. Settings it did
    not have are compared with their defaults, which equal its behaviour; data without bands are
    RGB.

    Raises:
        SetrError: says what differs.
    """
    splits = {_split(key) for key in before}
    no_bands = {
        f"{_split(k)}.{name}": None for k in before if _is_data_fact(k) for name in _BAND_FACTS
    }
    before = {**_settings(Config()), **_augmentation(None), **no_bands, **before}
    now = {k: v for k, v in now.items() if k in before or _split(k) not in splits}
    for kind, belongs in _IDENTITY.items():
        old = {k: v for k, v in before.items() if belongs(k)}
        new = {k: v for k, v in now.items() if belongs(k)}
        if found := differences(old, new):
            raise UsageError(f"{out}: cannot resume with {kind}: {found}; choose another --out")
    if found := differences(before, now):
        say(f"warning: {out}: settings differ from those the run began with: {found}")


def _split(key: str) -> str:
    """`data.train` for a fact about the files of that split; the key itself for other facts."""
    return key.rpartition(".")[0] if _is_data_fact(key) else key


def _is_data_fact(key: str) -> bool:
    """Whether a fact is about files and classes, not a setting of `data`."""
    return key.startswith("data.") and key.count(".") > 1  # a split's name may contain dots, too


_IDENTITY: dict[str, Callable[[str], bool]] = {
    "another model": lambda key: key.startswith("model."),
    "another optimiser": lambda key: key == "optim.name",
    "other data or classes": _is_data_fact,
    "another augmentation": lambda key: key == AUGMENT,
}
