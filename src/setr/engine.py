"""Training from Python and for `setr train`: one function over all settings.

`train` checks the data, builds the model and runs the loop over the steps (`training/run.py`), in
one process or in several.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setr import distributed
from setr.arguments.elsewhere import ADVICE
from setr.arguments.elsewhere_python import answers_keywords
from setr.config import Config, replacing
from setr.data.dataset import Dataset
from setr.data.own_augmentation import Augment, require_augment
from setr.errors import UsageError
from setr.trackers import Builder
from setr.training.named_config import named_config
from setr.training.run import Run
from setr.training.runfolder import RunFolder


def setting_like(name: str) -> str:
    """How to give `setr.train` the setting that an unknown keyword may mean; empty for none."""
    if call := replacing(name, "use setr.recipe(NAME)."):
        return f"{call} as config"
    return ADVICE.get(name.replace("_", "-"), "")


@answers_keywords("train", setting_like)
def train(
    config: Config | str | os.PathLike,
    *,
    data: str | os.PathLike | tuple[Dataset, Dataset] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trackers: Sequence[Builder] = (),
    augment: Augment | None = None,
) -> dict[str, Any]:
    """Train a model and write it to `config.out`.

    The run folder is a model directory in Hub layout (the weights with the best validation mIoU)
    with `config.yaml`, `log.jsonl`, `log.csv`, `samples/`, `metrics.json`, and `last/`, which holds
    the states to resume from. All processes started by torchrun or srun train one model together
    (see `distributed.py`).

    Args:
        config: all settings; or the name of a recipe, a YAML file, or a run folder to resume.
        data: a folder or YAML file in place of `config.data.root`, or the training and validation
            splits, as returned by `wrap_dataset` and `open_dataset`.
        resume: continue from the newest intact state in `last/`; the result equals that of an
            uninterrupted run bit for bit.
        overwrite: replace an existing run.
        trackers: further trackers of metrics: subclasses of `Tracker`, or functions of run folder
            and step that return one. Only rank 0 creates them.
        augment: applied to every crop after the recipe's own augmentation: a function of image
            uint8 (H, W, C), mask uint8 (H, W) with training ids and a numpy `Generator` that
            returns both in the same shapes; or a transform of albumentations or of
            torchvision.transforms.v2. Its random numbers are seeded for each sample. Runs with one
            can only be resumed with one; a text in its attribute `version` (by default its repr)
            is compared, with a warning.

    Returns:
        The content of `metrics.json`.

    Raises:
        SetrError: bad data (exit code 3), an existing run, a model or data that differ from those
            of the run to resume, processes with different settings, a lost process, a non-finite
            loss or gradient, an interruption.
    """
    if isinstance(config, str | os.PathLike):
        config = named_config(os.fspath(config))
    if not isinstance(config, Config):
        raise UsageError(
            f"config {type(config).__name__}: give a recipe's name, a config.yaml, or a Config, as "
            "setr.recipe(NAME) gives one"
        )
    if not isinstance(trackers, Sequence) or not all(map(callable, trackers)):
        raise UsageError(
            f"trackers {trackers!r:.80}: give a list of subclasses of setr.Tracker, or of "
            "functions that make one; train.log names TensorBoard and W&B"
        )
    if isinstance(data, str | os.PathLike):
        config, data = config.replace({"data.root": os.fspath(data)}), None
    if augment is not None:
        require_augment(augment, cache_features=config.train.cache_features)
    with distributed.joined(config.train.device):
        folder = RunFolder(
            Path(config.out),
            resume=resume,
            overwrite=overwrite,
            trackers=config.train.trackers,
            own_trackers=trackers,
        )
        with contextlib.closing(folder):
            run = Run(config, folder, data, augment)
            run.loop()
            return run.finish()
