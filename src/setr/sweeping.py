"""Sweeps: the same training with other settings, compared on the validation split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setr.config import Config
from setr.data.dataset import Dataset
from setr.errors import UsageError
from setr.pages.sweep_page import as_json, write_results_csv, write_sweep
from setr.processes.launch import place_of
from setr.training.named_config import named_config
from setr.trials import Trial, planned_trials, train_trials
from setr.writing import require_writable, write_json


def sweep(
    config: Config | str | os.PathLike,
    vary: Mapping[str, Sequence[Any] | str],
    *,
    trials: int | None = None,
    seeds: int = 1,
    median_stop: bool = False,
    data: str | os.PathLike | tuple[Dataset, Dataset] | None = None,
) -> list[Trial]:
    """Train with several settings; every run is in a folder of its own in `config.out`.

    After each run `results.json`, `results.csv` and `report.html` are written there. What is
    trained already is not trained again, so a sweep that was stopped continues, and one with
    further values, trials or seeds trains only those. Several processes may do the same sweep at
    once, each on its own GPU: they share the trials. The states to resume from (`last/`) are
    removed from runs that have finished.

    Args:
        config: the settings that stay; or the name of a recipe or a YAML file. Its `out` is the
            folder of the sweep.
        vary: for each varied setting (`optim.lr`) a list of values, or a range as the text
            `1e-5..1e-3`; ranges whose ends have a ratio of ten or more are spread over the
            logarithm.
        trials: so many points, spread evenly; needed with ranges. Without, all combinations.
        seeds: trainings of each, with `train.seed` and the numbers after it.
        median_stop: end a run when the best mIoU of its evaluations so far is below the median of
            what at least three others had reached by the same step. Needs `train.eval_every`.
        data: as for `setr.train`.

    Returns:
        All trials: `variation` (the varied settings), `config`, `run` (the folder), `metrics` (as
        `setr.train` returns them), `miou` (0 to 1). One that failed (a loss that is not finite,
        memory that ran out) has its `problem` as text, and the others are trained.

    Raises:
        SetrError: settings, data or machine that no trial can be trained with, most of it before
            the first one begins; a folder with a trial of other settings; an interruption.
    """
    if not isinstance(config, Config):
        config = named_config(os.fspath(config))
    place = place_of(os.environ)
    if place is not None and place.world > 1:
        raise UsageError(
            "sweep: one process trains a trial; start the same sweep once for each GPU, and they "
            "share the trials"
        )
    if median_stop and not config.train.eval_every:
        raise UsageError(
            "median_stop: compares evaluations during the training; give train.eval_every, too"
        )
    out = Path(config.out)
    require_writable(out, "out")
    planned = planned_trials(config, vary, trials, seeds)

    def write(found: Sequence[Trial]) -> None:
        write_json(out / "results.json", as_json(found))
        write_results_csv(out / "results.csv", found)
        write_sweep(out / "report.html", f"Sweep of {config.recipe}", found)

    return train_trials(planned, median_stop=median_stop, data=data, watch=write)
