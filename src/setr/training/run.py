"""One training run: its parts, and the loop over the steps.

Every step loads a batch, runs forward and backward pass and updates the weights; the run logs,
tests and saves at intervals. The same code runs in one process and in several, which stop and save
between the same two steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr import distributed
from setr.checkpoint import states
from setr.config import Config
from setr.data.dataset import Dataset
from setr.data.own_augmentation import Augment
from setr.distributed import everywhere, gpu_out_of_reach, raise_everywhere, say, together
from setr.errors import INTERRUPTED, SetrError
from setr.estimate import explain_out_of_memory
from setr.layers.precision import autocast_dtype, precision_name
from setr.processes.interrupt import Interrupt, Stopped, ending_with
from setr.processes.progress import Progress
from setr.provenance import provenance
from setr.training.best import Best, Guard, UntestedError
from setr.training.build import build_model, without_weights
from setr.training.complexity import parameter_counts
from setr.training.facts import AUGMENT_VERSION, data_record
from setr.training.loss_scale import LossScaler
from setr.training.optim import MovingAverage, build_optimizer
from setr.training.parallel import Parallel
from setr.training.pixel_counts import build_weights
from setr.training.preparation import prepare
from setr.training.profiling import Profile
from setr.training.resolved import announce, headline, unlabelled_count
from setr.training.runfolder import RunFolder
from setr.training.samples import crops_picture
from setr.training.snapshot import restore, snapshot, tested_weights
from setr.training.sources import open_source
from setr.training.telemetry import Telemetry
from setr.training.updates import Updates
from setr.writing import write_json


class Run:
    """One training run.

    Args:
        folder: where everything is written; if it has a state, the run continues from it.
        data: training and validation split, in place of those that the settings name.

    Raises:
        SetrError: see `setr.train`.
    """

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
        ready = prepare(config, folder, data, augment, self.device, self.dtype)
        self.config, self.dataset, self.val = ready.config, ready.train, ready.val
        self.facts, self.pixels, self.share = ready.facts, ready.pixels, ready.share
        config, num_classes = self.config, len(self.dataset.labels.classes)
        first = config.train.init_seed
        torch.manual_seed(config.train.seed if first is None else first)
        self.scaler = LossScaler(self.device, enabled=self.dtype is torch.float16)
        weight = build_weights(config, self.dataset.labels, self.pixels, self.device)
        self.best = Best(config, folder, self.val, ready.info, self.device, weight)
        if not folder.state:
            announce(config, len(self.dataset))
        built = without_weights(config) if folder.state else config  # the state holds all weights
        self.model = everywhere(partial(build_model, built, num_classes)).to(self.device)
        counts, precision = parameter_counts(self.model), precision_name(self.dtype)
        say(headline(config, counts, len(self.dataset), self.device, precision))
        if config.train.device == "auto" and (why := gpu_out_of_reach()):
            say(f"warning: {why}")
        self.telemetry = Telemetry(config, num_classes, self.device, self.dtype)
        self.parallel = Parallel(self.model, config.train.sharding, compiled=config.train.compile)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.ema = MovingAverage(self.model, config.train.ema) if config.train.ema else None
        self.step, self.tested_step, self.seconds = 0, 0, 0.0
        unwritten = False  # whether the state has a best model that the folder lacks
        if folder.state:
            restore(folder.state, self.model, self.optimizer, self.ema)
            self.step, values = folder.state.step, folder.state.values
            self.tested_step, self.seconds = values["tested"], values["seconds"]
            unwritten = self.best.restore(folder.state)
            self.scaler.restore(values["scaler"])
            say(f"continuing after step {self.step}")
        self.saved = folder.state is not None  # whether the newest state on disk is this one
        self.source = open_source(
            config,
            self.dataset,
            self.model,
            self.dtype,
            self.pixels,
            self.share,
            augment,
            ready.extra,
        )
        self.updates = Updates(
            config,
            self.parallel,
            self.source,
            self.optimizer,
            self.scaler,
            ema=self.ema,
            weight=weight,
            teacher=ready.teacher,
            dtype=self.dtype,
        )
        folder.open(ready.saved_config)
        if unwritten and folder.state:
            with tested_weights(folder.state, self.model):
                self.best.write(self.parallel)

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
            end_reason = self.best.stop_reason() or self.folder.ended()
            while self.step < config.steps and not end_reason:
                images, masks = self._next_batch(batches, interrupt)
                if self.step == 0:
                    self._show_crops(images, masks)
                with explain_out_of_memory(self.config, self.model.num_classes, self.device):
                    parts = self.train_step(images, masks)
                self.step, self.saved = self.step + 1, False
                profile.step()
                progress.update(self.step, images=config.batch_size, **parts)
                last = self.step == config.steps
                logged = self.step % config.log_every == 0 or last
                if logged:
                    rates = self.telemetry.figures(progress.rates())
                    self._log({**parts, **rates})
                tested = self._test_is_due()
                if tested:
                    self._test(interrupt, progress)
                if logged or tested:
                    end_reason = self.best.stop_reason() or self.folder.ended()
                saved = tested and not self.best.stale  # by the test
                if (last or end_reason or self.step % config.save_every == 0) and not saved:
                    self._save()
            self._stop_if_needed(interrupt)
        progress.close()
        if self.step < config.steps:
            say(f"ended after step {self.step} of {config.steps}: {end_reason}")

    def _log(self, figures: Mapping[str, Any]) -> None:
        """Log figures of the last step, with how far and how long the training has gone."""
        labelled = self.config.train.batch_size - unlabelled_count(self.config)
        passes = self.step * labelled / len(self.dataset)
        passed = {"epoch": round(passes, 4), "seconds": round(self._seconds(), 1)}
        self.folder.log({"step": self.step, **passed, **figures})

    def _seconds(self) -> float:
        """Time that the run has taken, also before it was resumed."""
        return self.seconds + time.monotonic() - self.began

    def _next_batch(
        self, batches: Iterator[tuple[Tensor, Tensor]], interrupt: Interrupt
    ) -> tuple[Tensor, Tensor]:
        """The next batch, as soon as every process has its own; see `_stop_if_needed`."""
        problem: Exception | None = None
        try:
            batch = next(batches)
        except Exception as error:
            problem = error
        self._stop_if_needed(interrupt, problem)
        return batch

    def _stop_if_needed(self, interrupt: Interrupt, problem: Exception | None = None) -> None:
        """Save and end the run if in any process a signal arrived or data cannot be loaded.

        All processes call this between the same two steps, so they save the same state.
        """
        if interrupt.requested and isinstance(problem, RuntimeError):
            problem = None  # of loader workers that the signal has ended, too
        if not distributed.any_of(interrupt.requested or problem is not None):
            return
        if not any(distributed.gather(problem is not None)):
            raise self._interruption(self.saved or self._save())
        if self.step:
            self._save_for_later()
        raise_everywhere(problem)

    def _show_crops(self, images: Tensor, masks: Tensor) -> None:
        """Log a picture of the first crops, which shows what the model is trained on."""
        shown = self.config.train.samples
        if not shown or self.config.train.cache_features != "none":
            return
        names = self.source.names(0, self.share)
        truths, _ = self.source.told_apart(masks)
        rows = list(zip(images.numpy(), truths.numpy(), names, strict=True))[:shown]
        self.folder.picture(0, crops_picture(self.dataset.labels, rows))

    def _test_is_due(self) -> bool:
        """Whether the weights are to be tested after this step."""
        every, steps = self.config.train.eval_every, self.config.train.steps
        return every > 0 and self.step % every == 0 and 0 < self.step < steps

    def _test(self, interrupt: Interrupt, progress: Progress) -> None:
        """Test the weights between two steps, until a signal arrives.

        A single process stops at once, and saves its state whatever ends the test. Several finish
        their current images, so that all stop and save at the same point.
        """
        alone = distributed.world() == 1
        guard = interrupt.at_once if alone else contextlib.nullcontext
        try:
            with progress.paused():
                self._validate(guard, lambda: distributed.heard_of(interrupt.requested))
        except Stopped:
            raise self._interruption(self.saved or self._save()) from None
        except Exception:
            if alone and not self.saved:
                self._save_for_later()
            raise

    def _save_for_later(self) -> None:
        """Save the state, unless it is saved, before an error ends the run."""
        if self.saved or self._save():
            say(
                f"the state of step {self.step} is saved; once the cause of what follows is gone, "
                f"`{self.folder.resumed_by}` continues from it"
            )

    def _interruption(self, saved: bool) -> SetrError:
        """The error, in all processes, that ends a run after a signal."""
        return together(SetrError(self._stop_message(saved), code=INTERRUPTED))

    def _stop_message(self, saved: bool) -> str:
        """How to go on after a signal; `saved` tells whether the last step can be resumed."""
        stopped = f"stopped after step {self.step}"
        if not (saved or states(self.folder.last)):
            return f"{stopped}, which could not be saved; `setr train` with --overwrite starts anew"
        note = "" if saved else " from the state before, since this one was not saved"
        return f"{stopped}; continue with `{self.folder.resumed_by}`{note}"

    def train_step(self, images: Tensor, masks: Tensor) -> dict[str, float]:
        """One optimiser step on this process's share of a batch; the values to log."""
        return self.updates.step(self.step, images, masks)

    def finish(self) -> dict[str, Any]:
        """Test the final weights and write the figures of the best ones to `metrics.json`.

        An interruption stops this at once; the run can be resumed at this point.
        """
        try:
            with ending_with(self._stop_message(self.saved)):
                return self._finish()
        except SetrError as error:
            if error.code == INTERRUPTED:
                distributed.leave(str(error))  # else processes without the signal wait for it
                together(error)
            raise error from None

    def _finish(self) -> dict[str, Any]:
        if self.tested_step < self.step or not self.best.figures:
            self._validate()
            if self.best.stale:
                self._save()
        if not self.best.figures:
            how = f"`{self.folder.resumed_by}` tests and writes it"
            if not states(self.folder.last):
                how = "`setr train` with --overwrite starts anew"
            raise together(
                SetrError(
                    f"{self.folder.out}: no model could be written, as said above; free the disk, "
                    f"then {how}"
                )
            )
        if self.config.train.adjust_logits or self.best.is_adjusted():
            self.best.adjust(self.pixels)
        metrics = {
            **self.best.results(),
            "recipe": self.config.recipe,
            "data": data_record(self.facts, self.dataset, self.val),
            "split": self.val.split,
            "steps": self.step,
            "augment": self.facts[AUGMENT_VERSION],
            "seconds": self._seconds(),
            "processes": distributed.world(),
            "provenance": provenance(self.config.train.seed, self.device),
        }
        path = self.folder.out / "metrics.json"
        self.folder.attempt("figures", lambda: write_json(path, metrics))
        return metrics

    def _validate(
        self, guard: Guard = contextlib.nullcontext, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Test the weights, or their moving average if there is one; see `Best.test`.

        Better ones are saved as a state, then as the best model (see `best.py`). If the test fails,
        all processes save the state before they raise the error.
        """
        self.updates.release()
        averaged = partial(self.ema.inside, self.model) if self.ema else contextlib.nullcontext
        try:
            with averaged():
                better = self.best.test(self.parallel, self.step, guard, stopped, self._log)
        except UntestedError as failure:
            self._save_for_later()
            error = failure.__cause__ or failure
            raise error from error.__cause__
        self.tested_step, self.saved = self.step, False
        if better:
            self._save()
            with averaged():
                self.best.write(self.parallel)

    def _save(self) -> bool:
        values = {
            "facts": self.facts,
            "scaler": self.scaler.state(),
            "seconds": self._seconds(),
            "tested": self.tested_step,
            **self.best.state(),
        }
        tensors = snapshot(self.model, self.optimizer, self.ema)
        keep = self.config.train.keep_states
        self.saved = self.folder.save(self.step, values, tensors, keep=keep)
        return self.saved
