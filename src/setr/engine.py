"""The training loop.

`train` checks the data, builds the model, and then loads a batch, runs forward and backward pass
and updates the weights in every step; it logs, evaluates and saves at intervals. The same code runs
in one process and in several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr import distributed
from setr.config import Config
from setr.data.dataset import Dataset
from setr.data.own_augmentation import Augment, require_augment
from setr.distributed import everywhere, say, together
from setr.errors import INTERRUPTED, USAGE, SetrError
from setr.estimate import explain_out_of_memory, resolve_batch_and_steps
from setr.layers.precision import autocast_dtype
from setr.processes.interrupt import Interrupt, Stopped, ending_with
from setr.processes.progress import Progress
from setr.provenance import provenance
from setr.reading.files import write_json
from setr.trackers import Builder
from setr.training.best import Best, Guard
from setr.training.build import (
    announce,
    build_info,
    build_model,
    build_share,
    build_weights,
    checked_pixels,
    require_buildable,
    require_fitting_weights,
    with_workers,
    without_weights,
)
from setr.training.facts import AUGMENT_VERSION, data_record, require_same_run, run_facts
from setr.training.loss_scale import LossScaler
from setr.training.named_config import named_config
from setr.training.normalisation import with_normalisation
from setr.training.optim import MovingAverage, build_optimizer
from setr.training.parallel import Parallel
from setr.training.profiling import Profile
from setr.training.runfolder import RunFolder
from setr.training.samples import crops_picture
from setr.training.snapshot import restore, snapshot
from setr.training.sources import open_source
from setr.training.splits import open_splits
from setr.training.teacher import open_teacher
from setr.training.telemetry import Telemetry
from setr.training.updates import Updates


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
        raise SetrError(
            f"config {type(config).__name__}: give a recipe's name, a config.yaml, or a Config, as "
            "setr.recipe(NAME) gives one",
            code=USAGE,
        )
    if isinstance(data, str | os.PathLike):
        named = dataclasses.replace(config.data, root=os.fspath(data))
        config, data = dataclasses.replace(config, data=named), None
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
            run = _Run(config, folder, data, augment)
            run.loop()
            return run.finish()


class _Run:
    """One training run: its parts, and the loop over the steps."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        data: tuple[Dataset, Dataset] | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.folder, self.began = folder, time.monotonic()
        self.device = distributed.device(config.train.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # used by kernels and memory statistics
        self.dtype = autocast_dtype(config.train.precision, self.device)
        distributed.on_first(lambda: require_buildable(config, weights=not folder.state))
        config, self.dataset, self.val = everywhere(partial(open_splits, config, data))
        num_classes = len(self.dataset.labels.classes)
        before = folder.state.values["facts"] if folder.state else None
        config = with_normalisation(config, self.dataset)
        if not folder.state:
            distributed.on_first(partial(require_fitting_weights, config))
        config = resolve_batch_and_steps(
            config, num_classes, len(self.dataset), self.device, before=before
        )
        share = everywhere(partial(build_share, config, distributed.rank()))
        saved_config, config = config, with_workers(config, self.device)
        self.config = config
        labels, bands = self.dataset.labels, self.dataset.bands
        open_own = partial(open_teacher, config, labels, bands, self.device, self.dtype)
        teacher = everywhere(open_own)
        self.facts = run_facts(config, self.dataset, self.val, augment=augment)
        if teacher:
            self.facts["distill.weights"] = teacher.digest
        distributed.require_equal(self.facts)
        if before:
            distributed.on_first(lambda: require_same_run(folder.out, before, self.facts))
        done, steps = folder.state.step if folder.state else 0, config.train.steps
        if done > steps:
            problem = f"train.steps {steps}: {folder.out} has {done} already; give at least {done}"
            raise together(SetrError(problem, code=USAGE))
        info = build_info(config, labels, bands)
        pixels = distributed.on_first(lambda: checked_pixels(config, self.dataset, self.val))
        torch.manual_seed(config.train.seed)
        self.scaler = LossScaler(self.device, enabled=self.dtype is torch.float16)
        self.best = Best(config, folder, self.val, info, self.device)
        if not folder.state:
            announce(config, len(self.dataset))
        built = without_weights(config) if folder.state else config  # the state holds all weights
        self.model = everywhere(partial(build_model, built, num_classes)).to(self.device)
        if config.train.grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.pixels = pixels
        self.telemetry = Telemetry(config, num_classes, self.device, self.dtype)
        self.parallel = Parallel(self.model, config.train.sharding, compiled=config.train.compile)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.ema = MovingAverage(self.model, config.train.ema) if config.train.ema else None
        self.step, self.tested_step, self.seconds = 0, 0, 0.0
        if folder.state:
            restore(folder.state, self.model, self.optimizer, self.ema)
            self.step = folder.state.step
            self.tested_step = folder.state.values.get("tested", self.step)
            self.seconds = folder.state.values["seconds"]
            self.best.restore(folder.state.values)
            self.scaler.restore(folder.state.values.get("scaler", {}))
            say(f"continuing after step {self.step}")
        self.saved_step, self.share = self.step, share
        self.source = open_source(
            config, self.dataset, self.model, self.dtype, pixels, share, augment
        )
        self.updates = Updates(
            config,
            self.parallel,
            self.source,
            self.dataset,
            self.optimizer,
            self.scaler,
            ema=self.ema,
            weight=build_weights(config, labels, pixels, self.device),
            teacher=teacher,
            dtype=self.dtype,
        )
        folder.open(saved_config)

    def loop(self) -> None:
        """Run the remaining steps."""
        config = self.config.train
        progress = Progress("train", config.steps, start=self.step)
        batches = progress.fed_by(self.source.batches(self.step))
        profile = Profile(
            self.model, config.profile, self.folder.out, remaining=config.steps - self.step
        )
        with Interrupt() as interrupt, profile:
            if self._test_is_due() and self.tested_step < self.step:  # stopped during a test
                self._test(interrupt, progress)
            end_reason = self.best.stop_reason()
            while self.step < config.steps and not end_reason:
                images, masks = self._next_batch(batches, interrupt)
                if self.step == 0:
                    self._show_crops(images, masks)
                with explain_out_of_memory(self.config, self.model.num_classes, self.device):
                    parts = self.train_step(images, masks)
                self.step += 1
                profile.step()
                progress.update(self.step, images=config.batch_size, **parts)
                last = self.step == config.steps
                stop = distributed.any_of(interrupt.requested)
                logged = self.step % config.log_every == 0 or last
                if logged:
                    rates = self.telemetry.figures(progress.rates())
                    self.folder.log({"step": self.step, **parts, **rates})
                tested = self._test_is_due()
                if tested:
                    self._test(interrupt, progress)
                if logged or tested:
                    end_reason = self.best.stop_reason() or self.folder.ended()
                saved = True
                better = tested and not self.best.stale  # older states lack its figures
                if last or end_reason or stop or better or self.step % config.save_every == 0:
                    saved = self._save()
                if stop:
                    raise together(SetrError(self._stop_message(saved), code=INTERRUPTED))
        progress.close()
        if self.step < config.steps:
            say(f"ended after step {self.step} of {config.steps}: {end_reason}")

    def _next_batch(
        self, batches: Iterator[tuple[Tensor, Tensor]], interrupt: Interrupt
    ) -> tuple[Tensor, Tensor]:
        """The next batch; if it cannot be loaded, what was trained so far is saved first.

        Several processes do not save, because the others are already in the step.
        """
        alone = distributed.world() == 1
        try:
            with self._interruptible(interrupt, save=alone):
                return next(batches)
        except Exception:
            if alone and self.saved_step < self.step and self._save():
                say(
                    f"the state of step {self.step} is saved; once the next batch can be loaded, "
                    f"`setr train {self.folder.out} --resume` continues from it"
                )
            raise

    def _show_crops(self, images: Tensor, masks: Tensor) -> None:
        """Log a picture of the first crops, which shows what the model is trained on."""
        shown = self.config.train.samples
        if not shown or self.config.train.cache_features != "none":
            return
        (batch,) = self.source.order(0, 1, self.share)
        names = [self.dataset.image_name(index) for _, index in batch]
        rows = list(zip(images.numpy(), masks.numpy(), names, strict=True))[:shown]
        self.folder.picture(0, crops_picture(self.dataset.labels, rows))

    def _test_is_due(self) -> bool:
        """Whether the weights are to be tested after this step."""
        every, steps = self.config.train.eval_every, self.config.train.steps
        return every > 0 and self.step % every == 0 and 0 < self.step < steps

    def _test(self, interrupt: Interrupt, progress: Progress) -> None:
        """Test the weights between two steps, until a signal arrives.

        A single process stops at once; several finish their current images, so that all stop at the
        same point.
        """
        alone = distributed.world() == 1
        at_once = interrupt.at_once if alone else contextlib.nullcontext
        try:
            with progress.paused(), self._interruptible(interrupt, save=alone):
                self._validate(at_once, lambda: distributed.heard_of(interrupt.requested))
        except Stopped:
            raise together(SetrError(self._stop_message(self._save()), code=INTERRUPTED)) from None

    def _stop_message(self, saved: bool = True) -> str:
        how = f"`setr train {self.folder.out} --resume`"
        note = "" if saved else " from the state before, since this one was not saved"
        return f"stopped after step {self.step}; continue with {how}{note}"

    @contextlib.contextmanager
    def _interruptible(self, interrupt: Interrupt, *, save: bool) -> Iterator[None]:
        """Turn errors of loader workers that a signal has ended, too, into an interruption."""
        try:
            yield
        except RuntimeError:
            if not interrupt.requested:
                raise
            saved = save and self._save()
            raise SetrError(self._stop_message(saved), code=INTERRUPTED) from None

    def train_step(self, images: Tensor, masks: Tensor) -> dict[str, float]:
        """One optimiser step on this process's share of a batch; the values to log."""
        return self.updates.step(self.step, images, masks)

    def finish(self) -> dict[str, Any]:
        """Test the final weights and write the figures of the best ones to `metrics.json`.

        An interruption stops this at once; the run can be resumed at this point.
        """
        try:
            with ending_with(self._stop_message()):
                return self._finish()
        except SetrError as error:
            if error.code == INTERRUPTED:
                distributed.leave(str(error))  # else processes without the signal wait for it
                together(error)
            raise error from None

    def _finish(self) -> dict[str, Any]:
        if self.tested_step < self.step or not self.best.figures:
            self._validate()
            self._save()
        if self.config.train.adjust_logits or self.best.is_adjusted():
            self.best.adjust(self.pixels)
        metrics = {
            **self.best.results(),
            "recipe": self.config.recipe,
            "data": data_record(self.facts, self.dataset, self.val),
            "split": self.val.split,
            "steps": self.step,
            "augment": self.facts[AUGMENT_VERSION],
            "seconds": self.seconds + time.monotonic() - self.began,
            "processes": distributed.world(),
            "provenance": provenance(self.config.train.seed, self.device),
        }
        path = self.folder.out / "metrics.json"
        self.folder.attempt("figures", lambda: write_json(path, metrics))
        return metrics

    def _validate(
        self,
        guard: Guard = contextlib.nullcontext,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Test the weights, or their moving average if there is one; see `Best.test`."""
        self.updates.release()
        with self.ema.inside(self.model) if self.ema else contextlib.nullcontext():
            self.best.test(self.parallel, self.step, guard, stopped)
        self.tested_step = self.step

    def _save(self) -> bool:
        values = {
            "facts": self.facts,
            "scaler": self.scaler.state(),
            "seconds": self.seconds + time.monotonic() - self.began,
            "tested": self.tested_step,
            **self.best.state(),
        }
        tensors = snapshot(self.model, self.optimizer, self.ema)
        keep = self.config.train.keep_states
        saved = self.folder.save(self.step, values, tensors, keep=keep)
        self.saved_step = self.step if saved else self.saved_step
        return saved
