"""The best weights of a run, by validation mIoU: testing, saving, and logit adjustment.

A state that has better weights is saved before they become the model in the run folder. A run that
ends in between writes the model from that state when it is resumed, so the folder never has a model
that the figures and the log of the run do not know.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr import distributed
from setr.checkpoint import State
from setr.config import Config
from setr.data.dataset import Dataset
from setr.distributed import say
from setr.errors import SetrError
from setr.evaluation import evaluate_split
from setr.hub import from_pretrained, holds_model, save_pretrained
from setr.layers.mask_classifier import MaskClassifier
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.reading.parsed import table_in
from setr.scores.adjustment import ADJUSTED, find_offsets, shift_logits
from setr.scores.split_loss import SplitLoss
from setr.training.parallel import Parallel, full_tensors
from setr.training.runfolder import RunFolder
from setr.training.samples import Samples

CROSS_ENTROPY = "cross_entropy"
"""Name of EoMT's validation loss, which must not be compared with that of its training."""

Guard = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes the context manager in which an evaluation runs."""


class UntestedError(Exception):
    """Raised in all processes if the evaluation of the weights fails; `__cause__` tells why."""


class Best:
    """The best weights so far, saved as a model directory in the run folder.

    Args:
        device: where the weights are tested.
        weight: (K,) class weights of the loss.

    Attributes:
        figures: scores of the best weights on `val`; empty before the first test.
        step: number of steps after which they were the best.
        stale: number of tests since then, none of which found better weights.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        val: Dataset,
        info: ModelInfo,
        device: torch.device,
        weight: Tensor | None = None,
    ) -> None:
        self.config, self.folder, self.val, self.info = config, folder, val, info
        self.device, self.weight = device, weight
        self.figures: dict[str, Any] = {}
        self.step: int | None = None
        self.stale = 0
        # of the model in the folder
        self.written: tuple[dict[str, Any], int | None] = self.figures, self.step

    def state(self) -> dict[str, Any]:
        """Values for the training state."""
        return {"figures": self.figures, "best": self.step, "stale": self.stale}

    def restore(self, state: State) -> bool:
        """Restore the values of a training state; whether the model is to be written from it.

        If the folder does not have the model of these figures, and neither has the state, the
        weights tested next are saved as the best. So it is if only a later state was copied from
        another machine.
        """
        figures, step = state.values["figures"], state.values["best"]
        problem = distributed.on_first(lambda: self._problem(step)) if figures else ""
        if problem and step != state.step:
            say(f"warning: {self.folder.out}: the best model {problem}; the next one is saved")
            return False
        self.figures, self.step, self.stale = figures, step, state.values["stale"]
        if problem:
            say(f"{self.folder.out}: the best model {problem}; the state has it")
            return True
        self.written = figures, step
        return False

    def _problem(self, step: int | None) -> str:
        """What is wrong with the saved model, which should be of a step; empty if nothing is."""
        if not holds_model(self.folder.out):
            return "is missing"
        try:
            _, info = from_pretrained(self.folder.out)
        except SetrError as error:
            return f"cannot be read ({error})"
        found = info.metrics.get("step")
        return f"is of step {found}, not of step {step}" if found != step else ""

    def stop_reason(self) -> str:
        """Why training stops early, the same in all processes; empty if it goes on."""
        patience = self.config.train.patience
        if not 0 < patience <= self.stale:
            return ""
        miou = self.figures["miou"] or 0.0
        tests = "1 evaluation" if self.stale == 1 else f"{self.stale} evaluations in a row"
        return f"{tests} found no better val mIoU than {miou:.4f} (train.patience {patience})"

    def test(
        self,
        parallel: Parallel,
        step: int,
        guard: Guard,
        stopped: Callable[[], bool],
        log: Callable[[Mapping[str, Any]], None],
    ) -> bool:
        """Test the model's current weights; whether they are the best so far, to be written.

        Args:
            parallel: the model.
            step: number of steps trained.
            guard: context manager for the evaluation.
            stopped: as for `evaluate_split`.
            log: takes the figures.

        Raises:
            UntestedError: the evaluation failed.
        """
        model, samples = parallel.model, Samples(self.val.labels, self.config.train.samples)
        with guard(), parallel.whole():
            try:
                figures = self._evaluate(
                    model, self.info, loss=self._loss(model), on_image=samples, stopped=stopped
                )
            except Exception as error:
                raise UntestedError from error
        score, before = figures["miou"] or 0.0, self.figures.get("miou") or 0.0
        log({"val": figures})
        self.folder.picture(step, samples.picture())
        stale = bool(self.figures) and score <= before
        best = f"the best was {100 * before:.2f} %" if stale else "the best so far"
        losses = ((name.replace("_", "-"), figures.get(name)) for name in ("loss", CROSS_ENTROPY))
        loss = "".join(f", {name} {value:.3f}" for name, value in losses if value is not None)
        say(f"step {step}: {self.val.split} mIoU {100 * score:.2f} %{loss}; {best}")
        self.stale = self.stale + 1 if stale else 0
        if not stale:
            self.figures, self.step = figures, step
        return not stale

    def write(self, parallel: Parallel) -> None:
        """Write the model's current weights, which are the best ones.

        If that fails, the model in the folder stays the best.
        """
        with parallel.whole():
            state = full_tensors(parallel.model.state_dict())
        metrics = {"val mIoU": round(self.figures["miou"] or 0.0, 4), "step": self.step}
        info = dataclasses.replace(self.info, metrics=metrics)
        save = partial(save_pretrained, self.folder.out, parallel.model, info, state=state)
        if self.folder.replace_model("best weights", save):
            self.written = self.figures, self.step
        else:
            self.figures, self.step = self.written

    def is_adjusted(self) -> bool:
        """Whether the saved model was already adjusted, before this run was resumed."""
        stored = self.folder.out / "config.json"  # not there if the disk was full
        return distributed.on_first(lambda: ADJUSTED in table_in(stored).get("metrics", ()))

    def adjust(self, pixels: np.ndarray) -> None:
        """Add the offsets to the class logits that are best on the validation split, once.

        Args:
            pixels: (K,) pixel counts of the classes in the training split.
        """
        model, info = self._load()
        new = ADJUSTED not in info.metrics  # else done before this run was resumed
        if new:
            search = partial(
                find_offsets,
                *(model, info, self.val),
                pixels=pixels,
                precision=self.config.train.precision,
                workers=self.config.data.workers,
            )
            shift_logits(model, distributed.on_first(search))
        figures = self._evaluate(model, info, loss=self._loss(model))
        metrics = {**info.metrics, "val mIoU": round(figures["miou"] or 0.0, 4)}
        info = dataclasses.replace(info, metrics={**metrics, ADJUSTED: self.val.split})
        save = partial(save_pretrained, self.folder.out, model, info)
        if not new or self.folder.replace_model("adjusted weights", save):
            self.figures = figures

    def results(self) -> dict[str, Any]:
        """The scores by protocol; computes those of the multi-scale test, if requested."""
        results = {"single_scale": self.figures}
        if self.config.eval.multi_scale:
            model, info = self._load()
            protocol = info.protocol.multi_scale()
            info = dataclasses.replace(info, protocol=protocol)
            results["multi_scale"] = self._evaluate(model, info)
        return results

    def _load(self) -> tuple[SETR, ModelInfo]:
        model, info = from_pretrained(self.folder.out)
        return model.to(self.device), info

    def _loss(self, model: SETR) -> SplitLoss:
        """What adds up the validation loss; the cross-entropy of EoMT, whose loss is of queries."""
        if isinstance(model.decoder, MaskClassifier):
            return SplitLoss(weight=self.weight, name=CROSS_ENTROPY, device=self.device)
        train = self.config.train
        return SplitLoss(train.loss, self.weight, norm=train.loss_norm, device=self.device)

    def _evaluate(self, model: SETR, info: ModelInfo, **options: Any) -> dict[str, Any]:
        figures = evaluate_split(
            model,
            info,
            self.val,
            precision=self.config.train.precision,
            workers=self.config.data.workers,
            detailed=False,
            **options,
        )
        if failed := figures.get("failed"):
            say(
                f"warning: {len(failed)} of {len(self.val)} images of {self.val.split} are in no "
                f"figure; the first: {failed[0]}"
            )
        return figures
