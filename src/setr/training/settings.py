"""Settings by dotted name, and which may differ within a run or within an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from setr.config import Config

_IMAGES = "distill.images"
WEIGHTS = ("model.pretrained", "model.pretrained_resnet", "distill.teacher")
"""Settings that name trained weights, as a tag, a file or a folder."""
PER_PROCESS = frozenset(
    {*WEIGHTS, _IMAGES, "out", "data.root", "data.workers"}
    | {f"train.{name}" for name in ("batch", "device", "log", "samples", "profile")}
)
"""Settings that may differ between the processes of a run, and when it is resumed: paths, which may
differ between hosts, workers, and output for the user."""
WITHOUT_EFFECT = PER_PROCESS - {*WEIGHTS, _IMAGES}
"""Settings that do not change what a run learns."""
FREE = WITHOUT_EFFECT | {
    "recipe",
    "eval.multi_scale",  # a further test
    *(f"train.{name}" for name in ("precision", "grad_checkpointing", "compile", "cuda_graph")),
    *(f"train.{name}" for name in ("sharding", "save_every", "keep_states", "log_every")),
    *(f"train.{name}" for name in ("seed", "init_seed")),
}
"""Settings that may differ from a recipe without making it another experiment.

Not `train.accumulate`: batch norm has the statistics of a micro-batch, the paper's of the batch."""


def flat(config: Config) -> dict[str, Any]:
    """All settings by dotted name, for example `train.steps`."""
    return dict(_flat(dataclasses.asdict(config)))


def changed(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Both values of each setting that differs and matters to the result, by name."""
    before, now = flat(old), flat(new)
    differing = (k for k in now if k not in WITHOUT_EFFECT and before[k] != now[k])
    return {k: (before[k], now[k]) for k in differing}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
