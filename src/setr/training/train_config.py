"""The settings of the training: the loop, the optimiser, and learning from another model.

Parts of `Config` (see `config.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from setr.arguments.choices import LossKind, Precision, Sharding
from setr.arguments.typed import check_fields
from setr.errors import check_rules, check_setting
from setr.training.weighting import named_weights

_STEPS = 80_000


def _is_from_0(value: float) -> bool:
    return 0 <= value < math.inf


@dataclass(frozen=True)
class TrainConfig:
    """The training loop: length, batch size, loss, logging and saving."""

    steps: int = None  # type: ignore[assignment]  # 80,000, or 0 beside epochs
    """Optimiser steps."""
    epochs: float = 0.0
    """Length in passes over the training split, converted to steps at the start of a run; 0 if
    train.steps is given."""
    batch_size: int = 8
    """Images per step, over all processes and accumulation."""
    batch: Literal["fixed", "auto"] = "fixed"
    """`auto` sets batch_size to the largest that is estimated to fit the device's free memory; the
    learning rate is not changed."""
    accumulate: int = 1
    """Gradient accumulation: micro-batches per step, each with batch_size / accumulate / processes
    images in every process."""
    sharding: Sharding = "none"
    """With several processes: `none` copies the model to each (DDP), `full` shards weights,
    gradients and optimiser state (FSDP2)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …; several processes take one GPU each."""
    precision: Precision = "auto"
    """auto: bf16 if the hardware supports it, else fp16 on GPUs and fp32 on CPUs. fp16 scales the
    loss and skips steps that overflow. The loss itself is always computed in fp32."""
    compile: bool = False
    """Train with torch.compile; evaluation and saved files do not change."""
    cuda_graph: bool = True
    """On one GPU, run the forward and backward pass as one CUDA graph: the same numbers, faster if
    kernels are short. Not used with several processes, accumulate, fp16, compile,
    grad_checkpointing, profile, cache_features, or losses other than cross-entropy."""
    aux_weight: float = 0.4
    """Weight of each auxiliary loss."""
    loss_norm: Literal["valid", "all"] = "valid"
    """Divide the loss by the number of valid pixels, or of all pixels as in the authors' code."""
    loss: LossKind = "cross_entropy"
    """Loss of the main head; dice and lovasz are added to the cross-entropy."""
    class_weights: str = "none"
    """Class weights in the loss: none; median_frequency (or auto) or sqrt_median_frequency,
    computed from the training split's pixels and limited to 4; or given as sky=0.5,pole=4, where
    other classes have weight 1 and weight 0 ignores a class."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then evaluated and saved in
    their place; 0 for none."""
    adjust_logits: bool = False
    """After training, adjust the class logits to raise the mIoU of the validation split, as `setr
    adjust` does; that mIoU then no longer comes from unseen data."""
    grad_checkpointing: bool = False
    """Recompute encoder activations in the backward pass to save memory."""
    cache_features: Literal["none", "once", "flip"] = "none"
    """With a frozen encoder (model.freeze -1): compute the features of every image once, store them
    on disk and train the heads on them; `flip` also stores mirrored images. Images are resized to
    fit data.crop_size; no other augmentation is applied."""
    log: str = ""
    """Trackers besides log.jsonl and log.csv: tensorboard, wandb or tensorboard,wandb."""
    samples: int = 4
    """Validation images to show with their predictions at each evaluation; 0 for none."""
    profile: int = 0
    """Number of steps to profile, after the first two: writes trace.json for Chrome or Perfetto,
    and prints the ten costliest operations by module; 0 for none."""
    eval_every: int = 0
    """Steps between evaluations on the validation split; 0 evaluates at the end only."""
    patience: int = 0
    """Stop after this many evaluations in a row without a better mIoU; 0 for never. The learning
    rate decays over all of train.steps, so a run that stops early misses its lowest values."""
    save_every: int = 1000
    """Steps between saves of the training state, which is also saved with every new best model."""
    keep_states: int = 2
    """Number of training states to keep; if the newest is broken, the one before it is used."""
    log_every: int = 50
    """Steps between log lines."""
    seed: int = 0
    """Seed of weights, sample order and augmentation."""
    init_seed: int | None = None
    """Seed of the weights that are not pretrained; train.seed by default. Runs that share it can be
    averaged."""

    def __post_init__(self) -> None:
        if self.steps is None:
            object.__setattr__(self, "steps", 0 if self.epochs else _STEPS)
        check_fields(self, "train.")
        check_rules(self, "train.", ("epochs", _is_from_0, "give a positive number"))
        both = f"train.steps {self.steps} and train.epochs {self.epochs:g}"
        check_setting(
            not (self.steps and self.epochs), f"{both}: give one of them, and 0 for the other"
        )
        check_setting(
            self.steps > 0 or self.epochs > 0, f"{both}: give at least one step, or epochs"
        )
        check_rules(
            self,
            "train.",
            ("batch_size save_every log_every keep_states", lambda v: v > 0, "give at least 1"),
            ("aux_weight eval_every patience samples", _is_from_0, "give 0 or more"),
            ("ema", lambda v: 0 <= v < 1, "give 0 to below 1"),
            ("seed init_seed", lambda v: 0 <= v < 2**64, "give 0 to 2^64 - 1"),
            ("profile", lambda v: v >= 0, "give steps, or 0 for none"),
        )
        check_setting(
            self.accumulate > 0 and self.batch_size % self.accumulate == 0,
            f"train.accumulate {self.accumulate}: must divide train.batch_size {self.batch_size}",
        )
        check_setting(
            not self.patience or self.eval_every > 0,
            f"train.patience {self.patience}: counts evaluations; give the steps between them with "
            "train.eval_every",
        )
        named_weights(self.class_weights)
        unknown = [name for name in self.trackers if name not in ("tensorboard", "wandb")]
        check_setting(
            not unknown, f"train.log {self.log}: give tensorboard, wandb or tensorboard,wandb"
        )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log`."""
        return tuple(name.strip() for name in self.log.split(",") if name.strip())


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule (paper section 4.1: SGD, polynomial decay)."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: float = 0.01
    """Peak learning rate of the encoder."""
    head_lr_factor: float = 10.0
    """Factor on the learning rate of the decoder and the auxiliary heads; 0 does not train them."""
    neck_lr_factor: float = 1.0
    """The same for the neck of MLA, DPT and UPerNet; 1 in the authors' code."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay; not applied to norms, biases and position embeddings."""
    decay_norms: bool = False
    """Apply weight decay to norms, biases and position embeddings, too, as mmsegmentation does for
    FCN and Semantic FPN."""
    layer_decay: float = 1.0
    """Layer-wise decay: factor on the learning rate from each block to the one before it; 1 for
    none."""
    schedule: Literal["poly", "cosine"] = "poly"
    """Decay of the learning rate: polynomial (power 1: linear, 0: none), or half a cosine."""
    power: float = 0.9
    """Power of the polynomial decay."""
    min_lr: float = 1e-4
    """Learning rate at the end of the decay, the same for all parameter groups, as in the authors'
    code."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    clip_grad: float = 0.0
    """Gradient norm above which gradients are clipped; 0 for no clipping."""

    def __post_init__(self) -> None:
        check_fields(self, "optim.")
        check_rules(
            self,
            "optim.",
            ("lr", lambda v: 0 < v < math.inf, "give a positive learning rate"),
            ("layer_decay", lambda v: 0 < v <= 1, "give 0 < d <= 1"),
            ("min_lr", lambda v: 0 <= v <= self.lr, f"give 0 to lr {self.lr}"),
            ("momentum", lambda v: 0 <= v < 1, "give 0 to below 1"),
            ("head_lr_factor neck_lr_factor weight_decay power", _is_from_0, "give 0 or more"),
            ("warmup_steps clip_grad", _is_from_0, "give 0 or more"),
        )
        check_setting(
            self.name == "sgd" or self.momentum == OptimConfig.momentum,
            f"optim.momentum {self.momentum}: is for sgd and has no effect with optim.name "
            f"{self.name}; leave one of them out",
        )
        check_setting(
            self.schedule == "poly" or self.power == OptimConfig.power,
            f"optim.power {self.power:g}: has no effect with optim.schedule {self.schedule}; leave "
            "one of them out",
        )


@dataclass(frozen=True)
class DistillConfig:
    """Learning from another model's predictions, beside the labels (knowledge distillation)."""

    teacher: str | None = None
    """A trained model of the same classes: a model directory, or owner/name on the Hub; or several,
    joined with commas. The loss adds how far the predictions are from its predictions, at every
    pixel."""
    weight: float = 1.0
    """Weight of that part of the loss."""
    temperature: float = 1.0
    """Divisor of both models' logits in that part; larger values weigh unlikely classes more."""
    images: str | None = None
    """Folder of images without masks, from which the model learns by the teacher's predictions
    alone."""
    share: float = 0.5
    """Share of the images of every batch that are of that folder, the others being labelled."""

    def __post_init__(self) -> None:
        check_fields(self, "distill.")
        check_rules(
            self,
            "distill.",
            ("weight temperature", lambda v: 0 < v < math.inf, "give a positive number"),
            (
                "weight temperature",
                lambda v: v == 1 or self.teacher is not None,
                "has no effect without distill.teacher; give that too",
            ),
            ("share", lambda v: 0 < v < 1, "give a share above 0 and below 1"),
            (
                "share",
                lambda v: v == type(self).share or self.images is not None,
                "has no effect without distill.images; give that too",
            ),
        )
        check_setting(
            self.images is None or self.teacher is not None,
            f"distill.images {self.images}: learnt from by a teacher; give distill.teacher",
        )
