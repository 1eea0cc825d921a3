"""The settings of a training run: frozen dataclasses, checked when they are made.

Fields are plain values, documented where they are declared; the command line and the YAML file in
the run folder are generated from them. Networks, losses and metrics never see these objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from setr import typed_yaml
from setr.errors import USAGE, SetrError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise SetrError(message, code=USAGE)


@dataclass(frozen=True)
class ModelConfig:
    """What is trained."""

    name: str = "setr_pup_base"
    """Model name (`setr models` lists them)."""
    encoder: str | None = None
    """Any timm ViT in place of the name's own encoder."""
    pretrained: str | None = None
    """Encoder weights: a checkpoint file, or a tag timm downloads; nothing for random weights."""
    pretrained_resnet: str | None = None
    """The same for the ResNet in front of a Hybrid's transformer."""
    channels: int | None = None
    """Width of the heads' convolutions; 256 in the paper."""
    img_size: int | None = None
    """Side in pixels the position grid is made for; the encoder's own by default."""
    taps: tuple[int, ...] | None = None
    """Blocks the heads read, counted from 1; the paper's by default."""
    align_corners: bool = True
    """Of MLA's upsampling, as in the authors' code; without, crops and whole images align."""
    patch_stride: int | None = None
    """Pixels from one token to the next; below the patch size patches overlap."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block, 0 to 1."""
    aux: bool = True
    """Auxiliary heads at the paper's layers."""
    freeze: int = 0
    """Encoder blocks that stay as they are, from the first, with the embeddings; -1 for all."""
    lora_rank: int = 0
    """Train a low-rank part of this rank in the attention layers in place of the encoder's own
    weights; 0 for none."""
    pos_interp: Literal["bicubic", "bilinear"] = "bicubic"
    """How position embeddings are resampled."""
    prefix_tokens: Literal["keep", "drop"] = "keep"
    """Whether class and register tokens go through the blocks."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of the input channels, images in 0 to 1; of other than three it is measured unless
    given."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of the input channels; the same holds."""

    def __post_init__(self) -> None:
        _check(0 <= self.drop_path < 1, f"model.drop_path {self.drop_path}: give 0 to below 1")
        _check(self.freeze >= -1, f"model.freeze {self.freeze}: give blocks, or -1 for all")
        _check(self.lora_rank >= 0, f"model.lora_rank {self.lora_rank}: give 0 or more")
        _check(
            not (self.freeze and self.lora_rank),
            "model.freeze and model.lora_rank: choose one; lora_rank freezes the encoder itself",
        )
        _check(len(self.mean) > 0, "model.mean (): give a number for each channel")
        _check(min(self.std, default=0) > 0, f"model.std {self.std}: give positive numbers")
        for name in ("img_size", "channels"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"model.{name} {value}: give at least 1")


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on, and how samples are augmented."""

    root: str = "scenes"
    """Folder or YAML file of the data set, or `scenes` for drawn scenes."""
    labels: str | None = None
    """Known data set whose classes to use where the folder names none."""
    train_split: str = "train"
    """Split to train on; several joined with +."""
    val_split: str = "val"
    """Split to evaluate on during training."""
    crop_size: tuple[int, int] = (512, 512)
    """Height and width of a training crop in pixels."""
    short_side: int | None = None
    """Images are first scaled to this short side in pixels, in training and testing."""
    long_side: int | None = None
    """The scaling to short_side stops where the long side reaches this many pixels."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Random scale of training images."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    flip_vertical: float = 0.0
    """Probability of a vertical flip; for images without an up, as those from above."""
    rotate: float = 0.0
    """Largest rotation in degrees, in both directions; 180 for images without an up."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue; of other than three channels only the first
    two."""
    max_class_share: float = 0.75
    """Largest share of a crop that one class may cover."""
    rare_class_crops: float = 0.0
    """Share of the crops laid around a class that is drawn the more often the rarer it is."""
    workers: int = 2
    """Processes that prepare samples; 0 prepares them in the training process."""

    def __post_init__(self) -> None:
        low, high = self.scale_range
        _check(min(self.crop_size) > 0, f"data.crop_size {self.crop_size}: give positive pixels")
        _check(0 < low <= high, f"data.scale_range {self.scale_range}: give 0 < low <= high")
        for name in ("flip", "flip_vertical"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"data.{name} {value}: give a probability, 0 to 1")
        _check(0 <= self.rotate <= 180, f"data.rotate {self.rotate}: give degrees, 0 to 180")
        _check(
            0 < self.max_class_share <= 1,
            f"data.max_class_share {self.max_class_share}: give a share above 0, at most 1",
        )
        _check(
            0 <= self.rare_class_crops <= 1,
            f"data.rare_class_crops {self.rare_class_crops}: give a share, 0 to 1",
        )
        _check(self.workers >= 0, f"data.workers {self.workers}: give 0 or more")
        for name in ("short_side", "long_side"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"data.{name} {value}: give at least 1 pixel")
        _check(
            self.long_side is None or self.short_side is not None,
            "data.long_side limits the scaling to data.short_side: give that too",
        )


@dataclass(frozen=True)
class OptimConfig:
    """How weights move (paper section 4.1: SGD, polynomial decay)."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: float = 0.01
    """Learning rate of the encoder at its peak."""
    head_lr_factor: float = 10.0
    """Factor on the learning rate of the decoder and the auxiliary heads; 0 keeps their weights."""
    neck_lr_factor: float = 1.0
    """The same for MLA's neck; 1 in the authors' code."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay; norms, biases and position embeddings have none."""
    decay_norms: bool = False
    """Weight decay for them too, as mmsegmentation trains FCN and Semantic FPN."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before it; 1 for none."""
    power: float = 0.9
    """Power of the polynomial decay."""
    min_lr: float = 1e-4
    """Learning rate the decay ends at, the same for all groups, as in the authors' code."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    clip_grad: float = 0.0
    """Largest gradient norm; 0 for no clipping."""

    def __post_init__(self) -> None:
        _check(self.lr > 0, f"optim.lr {self.lr}: give a positive learning rate")
        _check(0 < self.layer_decay <= 1, f"optim.layer_decay {self.layer_decay}: give 0 < d <= 1")
        _check(0 <= self.min_lr <= self.lr, f"optim.min_lr {self.min_lr}: give 0 to lr {self.lr}")
        _check(0 <= self.momentum < 1, f"optim.momentum {self.momentum}: give 0 to below 1")
        for name in ("head_lr_factor", "neck_lr_factor", "weight_decay", "power", "warmup_steps",
                     "clip_grad"):  # fmt: skip
            value = getattr(self, name)
            _check(value >= 0, f"optim.{name} {value}: give 0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and what is written."""

    steps: int = 80_000
    """Optimiser steps."""
    batch_size: int = 8
    """Images per step, over all processes and accumulation."""
    batch: Literal["fixed", "auto"] = "fixed"
    """`auto` sets batch_size to the largest that fits the device's free memory, by estimate; the
    learning rate stays as it is."""
    accumulate: int = 1
    """Parts a batch is computed in, one after the other; each process then holds batch_size /
    accumulate / processes images in memory."""
    sharding: Literal["none", "full"] = "none"
    """With several processes: `full` keeps a slice of weights, gradients and moments in each
    (FSDP2) in place of a copy of all (DDP)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …; of several processes each takes a GPU."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware has it, else fp16 on GPUs and fp32 on CPUs. fp16 trains with a
    scaled loss and leaves out steps that overflow. The loss itself is always fp32."""
    compile: bool = False
    """Train through torch.compile; testing and what is saved stay the same."""
    aux_weight: float = 0.4
    """Factor on each auxiliary loss."""
    loss_norm: Literal["valid", "all"] = "valid"
    """Divide the loss by the counted pixels, or by all pixels as the authors' code does."""
    loss: Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"] = "cross_entropy"
    """Loss of the main head; dice and lovasz are added to the cross-entropy."""
    class_weights: Literal["none", "auto", "median_frequency", "sqrt_median_frequency"] = "none"
    """Class weights from the training split's pixel counts, clamped at 4; auto is the median
    frequency."""
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
    save_every: int = 1000
    """Steps between saves of the training state."""
    keep_states: int = 2
    """Training states kept; a broken one is skipped for the one before it."""
    log_every: int = 50
    """Steps between lines of the log."""
    seed: int = 0
    """Seed of weights, order and augmentation."""

    def __post_init__(self) -> None:
        _check(self.steps > 0, f"train.steps {self.steps}: give at least one step")
        _check(self.batch_size > 0, f"train.batch_size {self.batch_size}: give at least 1")
        _check(
            self.accumulate > 0 and self.batch_size % self.accumulate == 0,
            f"train.accumulate {self.accumulate}: must divide train.batch_size {self.batch_size}",
        )
        _check(0 <= self.ema < 1, f"train.ema {self.ema}: give 0 to below 1")
        _check(self.seed >= 0, f"train.seed {self.seed}: give 0 or more")
        _check(self.aux_weight >= 0, f"train.aux_weight {self.aux_weight}: give 0 or more")
        for name in ("save_every", "log_every"):
            value = getattr(self, name)
            _check(value > 0, f"train.{name} {value}: give at least 1")
        _check(self.eval_every >= 0, f"train.eval_every {self.eval_every}: give 0 or more")
        _check(self.samples >= 0, f"train.samples {self.samples}: give 0 or more")
        _check(self.profile >= 0, f"train.profile {self.profile}: give steps, or 0 for none")
        unknown = [name for name in self.trackers if name not in ("tensorboard", "wandb")]
        _check(not unknown, f"train.log {self.log}: give tensorboard, wandb or both with a comma")
        _check(self.keep_states > 0, f"train.keep_states {self.keep_states}: give at least 1")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log`."""
        return tuple(name.strip() for name in self.log.split(",") if name.strip())


@dataclass(frozen=True)
class EvalConfig:
    """How the trained model is tested; stored with it."""

    protocol: Literal["paper-ss", "mmseg-ss", "whole"] | None = None
    """Named protocol; on other data than the paper's it takes window and stride from below."""
    window: tuple[int, int] | None = None
    """Height and width of the sliding window in pixels; whole images if not given."""
    stride: tuple[int, int] | None = None
    """Vertical and horizontal step of the window in pixels; the window's size if not given."""
    multi_scale: bool = False
    """After training, also test with the paper's six scales and flip."""

    def __post_init__(self) -> None:
        window, stride = self.window, self.stride
        _check(window is None or min(window) > 0, f"eval.window {window}: give positive pixels")
        _check(stride is None or window is not None, f"eval.stride {stride}: give eval.window too")
        if window and stride:
            _check(
                all(0 < s <= w for s, w in zip(stride, window, strict=True)),
                f"eval.stride {stride}: give 1 to the window's sides {window}",
            )
        _check(
            window is None or self.protocol != "whole",
            f"eval.window {window}: the protocol whole has none; give --eval.window None "
            "--eval.stride None, or another protocol",
        )


@dataclass(frozen=True)
class Config:
    """One training run."""

    recipe: str = "custom"
    """Name the run is reported under."""
    out: str = "runs/setr"
    """Folder the run is written to."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _check(
            self.train.cache_features == "none" or self.model.freeze == -1,
            "train.cache_features: features stay the same only with --model.freeze -1",
        )

    def to_yaml(self) -> str:
        """All settings as YAML; `from_yaml` gives an equal object back."""
        return typed_yaml.dump(self)

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "config") -> Config:
        """Read settings; a missing key takes its default.

        Raises:
            SetrError: not YAML, an unknown key (the nearest is named), or a value out of its range.
        """
        return typed_yaml.parse(cls, text, source)

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read settings from a YAML file."""
        if not path.is_file():
            raise SetrError(f"{path}: no such config file", code=USAGE)
        return cls.from_yaml(path.read_text(encoding="utf-8"), source=str(path))
