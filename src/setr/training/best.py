"""The best weights of a run, by validation mIoU: testing, saving, and logit adjustment."""

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
from setr.config import Config
from setr.data.dataset import Dataset
from setr.distributed import say
from setr.errors import SetrError
from setr.evaluation import evaluate_split
from setr.hub import from_pretrained, holds_model, save_pretrained
from setr.layers.mask_classifier import MaskClassifier
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.reading.parsed import BROKEN, json_of
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
        self.stale = 0

    def state(self) -> dict[str, Any]:
        """Values for the training state."""
        return {"figures": self.figures, "stale": self.stale}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restore the values of a training state, unless the best model is missing or damaged.

        It is missing if only the state was copied from another machine; the weights tested next are
        then saved as the best.
        """
        if values["figures"] and (problem := distributed.on_first(self._problem)):
            say(f"warning: {self.folder.out}: the best model {problem}; the next one is saved")
            return
        self.figures, self.stale = values["figures"], values.get("stale", 0)

    def _problem(self) -> str:
        """What is wrong with the saved model; empty if nothing is."""
        if not holds_model(self.folder.out):
            return "is missing"
        try:
            from_pretrained(self.folder.out)
        except SetrError as error:
            return f"cannot be read ({error})"
        return ""

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
    ) -> None:
        """Test the model's current weights; save them if they are the best so far.

        Args:
            parallel: the model.
            step: number of steps trained.
            guard: context manager for the evaluation, which ends before anything is written.
            stopped: as for `evaluate_split`.
            log: takes the figures.

        Raises:
            UntestedError: the evaluation failed, before anything was written.
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
        if stale:
            self.stale += 1
            return
        self.stale = 0
        state = full_tensors(model.state_dict())
        metrics = {"val mIoU": round(score, 4), "step": step}
        info = dataclasses.replace(self.info, metrics=metrics)
        save = partial(save_pretrained, self.folder.out, model, info, state=state)
        if self.folder.replace_model("best weights", save):
            self.figures = figures

    def is_adjusted(self) -> bool:
        """Whether the saved model was already adjusted, before this run was resumed."""

        def read() -> bool:
            try:
                text = (self.folder.out / "config.json").read_text("utf-8")
                return ADJUSTED in json_of(text)["metrics"]
            except (OSError, *BROKEN):  # a model that could not be written, as on a full disk
                return False

        return distributed.on_first(read)

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
