"""Settings by their dotted names, and which of them make another run or another experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from setr.config import Config

WEIGHTS = ("model.pretrained", "model.pretrained_resnet")
"""Places of pretrained weights: a tag, or a file that may hold the same."""
PER_PROCESS = frozenset(
    {*WEIGHTS, "out", "data.root", "data.workers"}
    | {f"train.{name}" for name in ("batch", "device", "log", "samples", "profile")}
)
"""What may differ between the processes of a run, and between a run and its resumption: places,
which hosts may name differently, helpers, what is shown."""
FREE = (PER_PROCESS - {*WEIGHTS}) | {
    "recipe",
    *(f"train.{name}" for name in ("precision", "accumulate", "grad_checkpointing", "compile")),
    "train.cuda_graph",
    *(f"train.{name}" for name in ("sharding", "save_every", "keep_states", "log_every", "seed")),
}
"""What may differ from a recipe without making it another experiment."""


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name, for example `train.steps`."""
    return dict(_flat(dataclasses.asdict(config)))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
