"""The optimiser step: learning rate, gradients of all micro-batches and processes, update."""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from setr import distributed
from setr.config import Config
from setr.distributed import add_up, say, together
from setr.errors import SetrError, first_line
from setr.layers.mask_classifier import MaskClassifier
from setr.layers.precision import autocast
from setr.layers.recompute import still_statistics
from setr.losses import count_weight, segmentation_loss
from setr.mask_loss import mask_weight
from setr.model import Features
from setr.training.graphed import Graphed
from setr.training.loss_scale import LossScaler
from setr.training.optim import MovingAverage, learning_rate, set_lr
from setr.training.parallel import Parallel, clip_gradients
from setr.training.resolved import unlabelled_count
from setr.training.single_value import require_several_values
from setr.training.sources import Source
from setr.training.teacher import Taught, Teacher


class Updates:
    """Performs optimiser steps.

    Args:
        parallel: the model, over all processes.
        source: source of the batches.
        optimizer: optimiser of the weights.
        scaler: scales the loss in fp16.
        ema: moving average of the weights, if used.
        weight: class weights (K,).
        teacher: a model to learn from, beside the labels.
        dtype: of autocast; None for fp32.
    """

    def __init__(
        self,
        config: Config,
        parallel: Parallel,
        source: Source,
        optimizer: Optimizer,
        scaler: LossScaler,
        *,
        ema: MovingAverage | None = None,
        weight: Tensor | None = None,
        teacher: Teacher | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.parallel, self.source = config, parallel, source
        self.optimizer, self.scaler, self.ema = optimizer, scaler, ema
        self.weight, self.teacher, self.dtype = weight, teacher, dtype
        self.model = parallel.model
        self.device = next(self.model.parameters()).device
        self.warned = False
        self.graphed = Graphed(self._captured, self.model) if self._can_capture() else None

    def _can_capture(self) -> bool:
        """Whether the forward and backward pass can be captured as one CUDA graph.

        Other losses than cross-entropy select pixels by value, EoMT's matches queries on the CPU,
        a teacher's makes its matrices there, several processes exchange gradients, fp16's loss
        scale changes, and gradient checkpointing saves the generator's state.
        """
        train = self.config.train
        return (
            train.cuda_graph
            and self.device.type == "cuda"
            and distributed.world() == 1
            and train.loss == "cross_entropy"
            and not isinstance(self.model.decoder, MaskClassifier)
            and self.teacher is None
            and train.accumulate == 1
            and not (self.scaler.enabled or train.grad_checkpointing)
            and not (train.compile or train.profile)
            and train.cache_features == "none"
        )

    def step(self, done: int, images: Tensor, masks: Tensor) -> dict[str, float]:
        """Update the weights with this process's share of a batch.

        Args:
            done: number of steps before this one.
            images: inputs from the source, (B, …).
            masks: the same, uint8 (B, H, W).

        Returns:
            Values for the log: losses and gradient norm over all processes, and the learning rate;
            in fp16 also the number of skipped steps.

        Raises:
            SetrError: a non-finite loss or gradient norm, except in fp16, which skips the step.
        """
        config = self.config
        rate = learning_rate(config.optim, done, config.train.steps)
        set_lr(self.optimizer, config.optim, done, config.train.steps)
        # seeded by (seed, step, rank) for drop path, so no random state has to be saved
        draw = (config.train.seed, done, distributed.rank())
        torch.manual_seed(int(np.random.SeedSequence(draw).generate_state(1)[0]))
        self.model.train()
        self.model.set_progress(done / config.train.steps)
        before = [b.clone() for b in self.model.buffers()] if self.scaler.enabled else []
        masks, counted = self.source.told_apart(masks.to(self.device, non_blocking=True))
        sums = self._gradients(images.to(self.device, non_blocking=True), masks, counted)
        self.scaler.unscale(self.optimizer)
        norm = clip_gradients(self.model, config.optim.clip_grad)
        totals = self._totals(sums, norm, rate, done)
        self._warn_if_nothing_valid(totals["main"], masks, done)
        moved = self.scaler.step(self.optimizer)
        if not moved:  # else an activation that overflowed would stay in the batch norms for good
            for buffer, kept in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(kept)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema and moved:
            self.ema.update(self.model, done)
        return {**totals, "lr": rate, **self.scaler.figures()}

    def _gradients(self, images: Tensor, masks: Tensor, counted: Tensor) -> dict[str, Tensor]:
        """Compute the gradients of all micro-batches; returns the sums of their losses.

        `masks` is what to learn, `counted` where to learn from the teacher.
        """
        if self.graphed:
            try:
                return self.graphed(cast("Tensor", self.source.inputs(images)), masks)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                say(f"warning: cannot capture a CUDA graph ({first_line(error)}); training without")
                self.graphed = None
                self.model.zero_grad(set_to_none=True)
        normalizer = self._normalizer(masks)
        add_up(normalizer)
        pixels = add_up(count_weight(counted)) if self.teacher else normalizer
        count = self.config.train.accumulate
        sums: dict[str, Tensor] = {}
        for number, (part, target, seen) in enumerate(
            zip(images.chunk(count), masks.chunk(count), counted.chunk(count), strict=True), 1
        ):
            with self.parallel.micro_batch(last=number == count):
                taught = Taught(self.teacher(part), seen, pixels) if self.teacher else None
                losses = self._backward(self.source.inputs(part), target, normalizer, taught)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def release(self) -> None:
        """Free the memory of the CUDA graph until the next step."""
        if self.graphed:
            self.graphed.release()

    def _normalizer(self, masks: Tensor) -> Tensor:
        """The loss normalizer of this process's share of a batch."""
        if isinstance(self.model.decoder, MaskClassifier):
            return mask_weight(masks, self.model.num_classes, self.weight)
        if self.config.train.loss_norm == "valid":
            return count_weight(masks, self.weight)
        batch = self.config.train.batch_size
        labelled = 1 - unlabelled_count(self.config) / batch
        return torch.full((), labelled * masks.numel(), device=self.device)

    def _captured(self, inputs: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The forward and backward pass to capture."""
        return self._backward(inputs, masks, self._normalizer(masks))

    def _backward(
        self,
        inputs: Tensor | Features,
        target: Tensor,
        normalizer: Tensor,
        taught: Taught | None = None,
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of a micro-batch; returns its losses."""
        losses = self._losses(inputs, target, normalizer, taught)
        recomputed = self.config.train.grad_checkpointing
        with still_statistics(self.model) if recomputed else nullcontext():
            self.scaler.scale(self.parallel.scale_loss(losses["loss"])).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _totals(
        self, sums: dict[str, Tensor], norm: Tensor, rate: float, done: int
    ) -> dict[str, float]:
        """The losses and the gradient norm over all processes."""
        # the norm is the same everywhere; its mean makes all agree even if only one overflows
        *values, mean_norm = add_up(
            torch.stack([*sums.values(), norm / distributed.world()])
        ).tolist()
        totals = dict(zip(sums, values, strict=True))
        for name, value in (("loss", totals["loss"]), ("gradient norm", mean_norm)):
            if not (np.isfinite(value) or self.scaler.enabled):
                advice = (
                    "limit gradients with --optim.clip-grad"
                    if self.dtype is None
                    else "set --train.precision fp32"
                )
                images = ", ".join(self.source.names(done))
                raise together(
                    SetrError(
                        f"{name} is {value} at step {done + 1} with lr {rate:.3g}; lower "
                        f"--optim.lr, or {advice}; the batch was {images}"
                    )
                )
        if np.isfinite(mean_norm):
            totals["gradient_norm"] = mean_norm
        return totals

    def _warn_if_nothing_valid(self, main: float, masks: Tensor, done: int) -> None:
        """Warn once of a step without valid pixels; confident logits may also give a loss of 0."""
        if self.warned or main or add_up(count_weight(masks.to(self.device), self.weight)):
            return
        self.warned = True
        say(
            f"warning: step {done + 1} has no valid pixel, so nothing is learned from it; all "
            f"are ignored or have weight 0 in the crops of {', '.join(self.source.names(done))}"
        )

    def _losses(
        self,
        inputs: Tensor | Features,
        target: Tensor,
        normalizer: Tensor,
        taught: Taught | None,
    ) -> dict[str, Tensor]:
        """The losses of a micro-batch; its logits are freed before the backward pass."""
        train = self.config.train
        B, H, W = target.shape
        with autocast(self.device, self.dtype), require_several_values(B, (H, W)):
            output = self.parallel.call(inputs, with_aux=True)
        losses = segmentation_loss(
            output,
            target,
            normalizer=normalizer,
            aux_weight=train.aux_weight,
            weight=self.weight,
            kind=train.loss,
        )
        if self.teacher and taught:
            distance = self.teacher.loss(output, taught)
            losses["loss"] = losses["loss"] + self.config.distill.weight * distance
            losses["distill"] = distance.detach()
        return losses
