"""The settings of how a model is trained: length, batch, loss, and what is written when.

Part of `Config` (see `config.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from setr.arguments.choices import LossKind, Precision, Sharding
from setr.errors import check_setting
from setr.training.weighting import named_weights

_STEPS = 80_000


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and what is written."""

    steps: int = None  # type: ignore[assignment]  # 80,000, or 0 beside epochs
    """Optimiser steps."""
    epochs: float = 0.0
    """Length in passes over the training split, which the start of a run turns into steps; 0 where
    train.steps says it."""
    batch_size: int = 8
    """Images per step, over all processes and accumulation."""
    batch: Literal["fixed", "auto"] = "fixed"
    """`auto` sets batch_size to the largest that fits the device's free memory, by estimate; the
    learning rate stays as it is."""
    accumulate: int = 1
    """Parts a batch is computed in, one after the other; each process then holds batch_size /
    accumulate / processes images in memory."""
    sharding: Sharding = "none"
    """With several processes: `full` keeps a slice of weights, gradients and moments in each
    (FSDP2) in place of a copy of all (DDP)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …; of several processes each takes a GPU."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware has it, else fp16 on GPUs and fp32 on CPUs. fp16 trains with a
    scaled loss and leaves out steps that overflow. The loss itself is always fp32."""
    compile: bool = False
    """Train through torch.compile; testing and what is saved stay the same."""
    cuda_graph: bool = True
    """On one GPU, start forward and backward pass as one recorded CUDA graph: the same numbers,
    faster where kernels are short. Left out where it does not apply (several processes or parts of
    a batch, fp16, compile, grad_checkpointing, profile, stored features, losses other than
    cross-entropy)."""
    aux_weight: float = 0.4
    """Factor on each auxiliary loss."""
    loss_norm: Literal["valid", "all"] = "valid"
    """Divide the loss by the counted pixels, or by all pixels as the authors' code does."""
    loss: LossKind = "cross_entropy"
    """Loss of the main head; dice and lovasz are added to the cross-entropy."""
    class_weights: str = "none"
    """Weights of the classes in the loss: none; median_frequency (or auto) or sqrt_median_frequency
    of the training split's pixels, clamped at 4; or by hand as sky=0.5,pole=4, where other classes
    have 1 and 0 leaves a class out."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated and
    saved; 0 for none."""
    adjust_logits: bool = False
    """When done, adjust the class logits for the validation split's mIoU, as `setr adjust` does;
    its own mIoU is then no longer an unseen figure."""
    grad_checkpointing: bool = False
    """Recompute encoder activations in the backward pass to save memory."""
    cache_features: Literal["none", "once", "flip"] = "none"
    """With a frozen encoder (model.freeze -1): compute its features of every image once, keep them
    on disk and train the heads from there; `flip` keeps mirrored images, too. Images are scaled to
    fit data.crop_size; nothing else of the augmentation applies."""
    log: str = ""
    """Trackers besides log.jsonl and log.csv: tensorboard, wandb, or both with a comma."""
    samples: int = 4
    """Validation images drawn with their prediction at each evaluation; 0 for none."""
    profile: int = 0
    """Steps to profile after the second one: a trace.json for Chrome or Perfetto, and the ten
    costliest operations by module; 0 for none."""
    eval_every: int = 0
    """Steps between evaluations on the validation split; 0 evaluates at the end only."""
    patience: int = 0
    """End the training when so many evaluations in a row find no better mIoU; 0 for never. The
    learning rate decays for all of train.steps, so an early end leaves its lowest values out."""
    save_every: int = 1000
    """Steps between saves of the training state; it is saved with the best weights, too."""
    keep_states: int = 2
    """Training states kept; a broken one is skipped for the one before it."""
    log_every: int = 50
    """Steps between lines of the log."""
    seed: int = 0
    """Seed of weights, order and augmentation."""

    def __post_init__(self) -> None:
        if self.steps is None:
            object.__setattr__(self, "steps", 0 if self.epochs else _STEPS)
        check_setting(
            0 <= self.epochs < math.inf, f"train.epochs {self.epochs}: give a positive number"
        )
        both = f"train.steps {self.steps} and train.epochs {self.epochs:g}"
        check_setting(not (self.steps and self.epochs), f"{both}: choose one, the other is 0")
        check_setting(
            self.steps > 0 or self.epochs > 0, f"{both}: give at least one step, or epochs"
        )
        check_setting(self.batch_size > 0, f"train.batch_size {self.batch_size}: give at least 1")
        check_setting(
            self.accumulate > 0 and self.batch_size % self.accumulate == 0,
            f"train.accumulate {self.accumulate}: must divide train.batch_size {self.batch_size}",
        )
        check_setting(0 <= self.ema < 1, f"train.ema {self.ema}: give 0 to below 1")
        check_setting(0 <= self.seed < 2**64, f"train.seed {self.seed}: give 0 to 2^64 - 1")
        check_setting(self.aux_weight >= 0, f"train.aux_weight {self.aux_weight}: give 0 or more")
        for name in ("save_every", "log_every"):
            value = getattr(self, name)
            check_setting(value > 0, f"train.{name} {value}: give at least 1")
        check_setting(self.eval_every >= 0, f"train.eval_every {self.eval_every}: give 0 or more")
        check_setting(self.patience >= 0, f"train.patience {self.patience}: give 0 or more")
        check_setting(
            not self.patience or self.eval_every > 0,
            f"train.patience {self.patience}: counts evaluations; give the steps between them with "
            "train.eval_every",
        )
        named_weights(self.class_weights)
        check_setting(self.samples >= 0, f"train.samples {self.samples}: give 0 or more")
        check_setting(self.profile >= 0, f"train.profile {self.profile}: give steps, or 0 for none")
        unknown = [name for name in self.trackers if name not in ("tensorboard", "wandb")]
        check_setting(
            not unknown, f"train.log {self.log}: give tensorboard, wandb or both with a comma"
        )
        check_setting(
            self.keep_states > 0, f"train.keep_states {self.keep_states}: give at least 1"
        )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log`."""
        return tuple(name.strip() for name in self.log.split(",") if name.strip())
