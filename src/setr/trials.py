"""The trials of a sweep: the same training with other settings.

Every trial is an ordinary run in a folder of its own, named by its settings. Nothing but these
folders and the settings files beside them is remembered, so a sweep continues by being asked for
again, grows by further values or seeds, and several processes that ask for it share the trials.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from setr.checkpoint import remove_states, states
from setr.config import Config
from setr.data.dataset import Dataset
from setr.distributed import say
from setr.engine import train
from setr.errors import FAILED, INTERRUPTED, SetrError, UsageError
from setr.median_stop import MedianStop
from setr.processes.lock import open_locked
from setr.reading.parsed import json_of
from setr.trackers import Builder
from setr.training.build import require_buildable
from setr.training.runfolder import LAST
from setr.training.settings import changed
from setr.variations import Variation, name_of, value_text, variations
from setr.writing import write_errors, write_text

SETTINGS = "settings"
"""Folder of the settings files, one for each trial, in the folder of the sweep."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        variation: the varied settings, by dotted name.
        config: all its settings.
        metrics: the content of `metrics.json`, on the validation split; None until it has finished.
        problem: why it failed, if it did; empty otherwise.
    """

    variation: Variation
    config: Config
    metrics: dict[str, Any] | None = None
    problem: str = ""

    @property
    def run(self) -> Path:
        """The run folder, a model directory once trained."""
        return Path(self.config.out)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.train.seed

    @property
    def miou(self) -> float | None:
        """MIoU on the validation split, 0 to 1."""
        return None if self.metrics is None else self.metrics["single_scale"]["miou"]

    @property
    def ended_early(self) -> bool:
        """Whether it finished before its last step."""
        return self.metrics is not None and self.metrics["steps"] < self.steps

    @property
    def steps(self) -> int:
        """Steps it was to have."""
        asked = self.config.train.steps
        saved = self.run / "config.yaml"
        return asked or (Config.load(saved).train.steps if saved.is_file() else 0)  # epochs

    @property
    def settings_file(self) -> Path:
        """Its settings, for `setr train`."""
        return self.run.parent / SETTINGS / f"{self.run.name}.yaml"


@dataclass(frozen=True)
class Compared:
    """The trials of one variation, with different seeds.

    Attributes:
        variation: the varied settings.
        trials: all of them.
        mious: mIoU of those that have finished.
    """

    variation: Variation
    trials: list[Trial] = field(default_factory=list)

    @property
    def mious(self) -> list[float]:
        """MIoU of the trials that have one."""
        return [trial.miou for trial in self.trials if trial.miou is not None]

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.mious) if self.mious else None

    @property
    def deviation(self) -> float | None:
        """Their standard deviation (of a sample), from two on."""
        return statistics.stdev(self.mious) if len(self.mious) > 1 else None

    @property
    def best(self) -> Trial | None:
        """The trial with the highest mIoU."""
        finished = [trial for trial in self.trials if trial.miou is not None]
        return max(finished, key=lambda trial: trial.miou or 0.0, default=None)


def planned_trials(
    config: Config, vary: Mapping[str, Sequence[Any] | str], number: int | None, seeds: int
) -> list[Trial]:
    """All trials, every variation with the first seed, then with the next; nothing is trained.

    Args:
        config: the settings that stay; its `out` is the folder of the sweep.
        vary: as for `variations`.
        number: as for `variations`.
        seeds: trainings of each variation.

    Raises:
        SetrError: settings that no run can have, or that the folder of a trial was not trained
            with.
    """
    if seeds < 1:
        raise UsageError(f"seeds {seeds}: give at least 1")
    found, planned = variations(config, vary, number), []
    for seed in range(config.train.seed, config.train.seed + seeds):
        for variation in found:
            out = str(Path(config.out) / f"{name_of(variation)}_seed={seed}")
            own = config.replace({**variation, "train.seed": seed, "out": out})
            trial = Trial(variation, own)
            _require_same(trial)
            planned.append(dataclasses.replace(trial, metrics=_metrics(trial)))
    for trial in planned:
        if trial.metrics is None:
            require_buildable(trial.config, weights=True)
    return planned


def train_trials(
    trials: list[Trial],
    *,
    median_stop: bool,
    data: str | os.PathLike | tuple[Dataset, Dataset] | None,
    watch: Callable[[list[Trial]], None],
) -> list[Trial]:
    """Train those that are not trained, except those that another process is training.

    Args:
        trials: from `planned_trials`.
        median_stop: end runs early, see `MedianStop`.
        data: as for `setr.train`.
        watch: called with all trials after each that has ended.

    Returns:
        All trials, with metrics or a problem.
    """
    found, runs = list(trials), [trial.run for trial in trials]
    for number, trial in enumerate(found):
        with _claimed(trial) as claimed:
            metrics, problem = _metrics(trial), ""  # another process may have trained it
            if claimed and metrics is None:
                say(f"\ntrial {number + 1} of {len(found)}: {trial.run.name}")
                trackers = [partial(MedianStop, runs=runs)] if median_stop else []
                metrics, problem = _trained(trial, data, trackers)
            if claimed and metrics is not None:
                remove_states(trial.run / LAST)
        found[number] = dataclasses.replace(trial, metrics=metrics, problem=problem)
        watch(found)
    return found


def compared(trials: Sequence[Trial]) -> list[Compared]:
    """The variations by their mean mIoU, the best first; those without one last."""
    groups = dict[str, Compared]()
    for trial in trials:
        group = groups.setdefault(name_of(trial.variation), Compared(trial.variation))
        group.trials.append(trial)
    return sorted(groups.values(), key=lambda g: -1.0 if g.mean is None else g.mean, reverse=True)


def _require_same(trial: Trial) -> None:
    """Refuse the folder of a trial that was asked for with other settings."""
    if not trial.settings_file.is_file():
        return
    for name, (old, new) in changed(Config.load(trial.settings_file), trial.config).items():
        raise UsageError(
            f"{trial.run}: was trained with {name} {value_text(old)}, not {value_text(new)}; "
            f"choose another folder with -o, or remove {trial.run} and {trial.settings_file}"
        )


def _metrics(trial: Trial) -> dict[str, Any] | None:
    path = trial.run / "metrics.json"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        values = json_of(text)
        if {"steps", "seconds"} <= values.keys() and "miou" in values["single_scale"]:
            return values
    raise SetrError(f"{path}: not the metrics of a run; remove {trial.run} to train it again")


@contextlib.contextmanager
def _claimed(trial: Trial) -> Iterator[bool]:
    """Whether this process may train a trial; no other one then does."""
    lock = trial.settings_file.with_suffix(".lock")
    fd = -1
    with write_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError):
            fd, _ = open_locked(lock, os.O_RDWR, "lockf")
    if fd < 0:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        os.close(fd)


def _trained(
    trial: Trial,
    data: str | os.PathLike | tuple[Dataset, Dataset] | None,
    trackers: Sequence[Builder],
) -> tuple[dict[str, Any] | None, str]:
    """Train one trial, or continue it; its metrics, or why it failed."""
    write_text(trial.settings_file, trial.config.to_yaml())
    resume = bool(states(trial.run / LAST))
    begun = (trial.run / "config.yaml").is_file()
    try:
        metrics = train(
            trial.config,
            data=data,
            resume=resume,
            overwrite=begun and not resume,
            trackers=trackers,
        )
    except SetrError as error:
        if error.code == INTERRUPTED:
            message = f"{error}; the same command or call continues the sweep"
            raise SetrError(message, code=INTERRUPTED) from None
        if error.code != FAILED:
            raise
        say(f"{trial.run.name} failed: {error}")
        return None, str(error)
    finally:
        gc.collect()  # the model is part of cycles
    return metrics, ""
