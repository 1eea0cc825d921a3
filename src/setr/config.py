"""The settings of a training run: frozen dataclasses, checked when they are made.

Fields are plain values, documented where they are declared; the command line and the YAML file in
the run folder are generated from them. Networks, losses and metrics never see these objects.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from setr.arguments.choices import Neck, PosInterp, PrefixTokens
from setr.arguments.elsewhere_python import answers_keywords
from setr.arguments.named_values import encoder_arguments
from setr.arguments.options import options_of
from setr.arguments.typed import check_fields
from setr.arguments.usage import meant
from setr.errors import UsageError, check_rules, check_setting
from setr.reading import typed_yaml
from setr.training.train_config import DistillConfig as DistillConfig
from setr.training.train_config import OptimConfig as OptimConfig
from setr.training.train_config import TrainConfig as TrainConfig


@dataclass(frozen=True)
class ModelConfig:
    """The model, and the weights it starts from."""

    name: str = "setr_pup_base"
    """Model name (`setr models` lists them)."""
    encoder: str | None = None
    """Any timm ViT, in place of the named model's own encoder."""
    encoder_args: tuple[str, ...] | None = None
    """Settings of the encoder in which it differs from timm's model of its name, each NAME=VALUE,
    such as init_values=1e-5 reg_tokens=4."""
    pretrained: str | None = None
    """Pretrained encoder weights: a checkpoint file, owner/name on the Hub, or a timm tag; random
    weights if not given."""
    pretrained_resnet: str | None = None
    """The same for the ResNet in front of a hybrid model's transformer."""
    channels: int | None = None
    """Channels of the heads' convolutions; 256 in the paper."""
    img_size: int | None = None
    """Image side in pixels that the position embeddings are made for; the encoder's by default."""
    taps: tuple[int, ...] | None = None
    """Encoder blocks whose outputs the heads use, counted from 1; the paper's by default."""
    align_corners: bool = True
    """align_corners of MLA's and DPT's upsampling, as in the authors' code. Turned off, predictions
    of crops and of whole images line up."""
    neck: Neck = "ln_mln"
    """UPerNet's neck: `mln` resamples the blocks' outputs to four sizes, `ln_mln` also normalises
    the last one first, `none` leaves all as they are; `feature2pyramid` enlarges them by transposed
    convolutions, as on BEiT and MAE."""
    patch_stride: int | None = None
    """Stride of the patch embedding in pixels; below the patch size, patches overlap."""
    merge_tokens: float = 0.0
    """Share of the 2x2 groups of patches, 0 to 1, that go through the encoder as one token each,
    the most similar ones: faster, and less accurate."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block, 0 to 1."""
    aux: bool = True
    """Train with auxiliary heads at the paper's layers."""
    freeze: int = 0
    """Number of encoder blocks to freeze, from the first, with the embeddings; -1 for all."""
    lora_rank: int = 0
    """Rank of LoRA adapters in the attention layers, trained in place of the encoder's own
    weights; 0 for none."""
    pos_interp: PosInterp = "bicubic"
    """Interpolation of the position embeddings."""
    prefix_tokens: PrefixTokens = "keep"
    """Whether class and register tokens go through the blocks."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each input channel, for pixels from 0 to 1. If the images do not have three channels,
    it is measured on the training split by default."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each input channel; measured in the same case."""

    def __post_init__(self) -> None:
        if isinstance(self.encoder_args, Mapping):  # from Python, as `create_model` takes them
            given = tuple(f"{name}={value}" for name, value in self.encoder_args.items())
            object.__setattr__(self, "encoder_args", given)
        check_fields(self, "model.")
        check_rules(
            self,
            "model.",
            ("drop_path", lambda v: 0 <= v < 1, "give 0 to below 1"),
            ("merge_tokens", lambda v: 0 <= v <= 1, "give a share of the groups, 0 to 1"),
            ("freeze", lambda v: v >= -1, "give blocks, or -1 for all"),
            ("lora_rank", lambda v: v >= 0, "give 0 or more"),
            ("mean", lambda v: len(v) > 0, "give a number for each channel"),
            ("std", lambda v: min(v, default=0) > 0, "give positive numbers"),
            (
                "mean std",
                lambda v: max(v) <= 1,
                "is of pixels from 0 to 1; divide those of 0 to 255 by 255",
            ),
            ("img_size channels", lambda v: v > 0, "give at least 1"),
        )
        check_setting(
            not (self.freeze and self.lora_rank),
            "model.freeze and model.lora_rank: choose one; lora_rank freezes the encoder itself",
        )
        encoder_arguments(self.encoder_args, "model.encoder_args")


@dataclass(frozen=True)
class DataConfig:
    """The data set, its augmentation and its loading."""

    root: str = "scenes"
    """Folder, YAML file or shards of the data set, hf:OWNER/NAME, or `scenes` for
    generated images."""
    labels: str | None = None
    """Known data set whose classes to use if the folder does not name any."""
    train_split: str = "train"
    """Split to train on; several joined with +."""
    val_split: str = "val"
    """Split to evaluate on during training."""
    fraction: float = 1.0
    """Share of the training images to use, evenly spaced over the split."""
    crop_size: tuple[int, int] = (512, 512)
    """Height and width of a training crop in pixels."""
    short_side: int | None = None
    """Resize images to this short side in pixels first, in training and testing."""
    long_side: int | None = None
    """Upper limit of the long side in pixels when images are resized to short_side."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale of training images."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    flip_vertical: float = 0.0
    """Probability of a vertical flip; for images without an upright direction, such as aerial
    photos."""
    rotate: float = 0.0
    """Largest random rotation in degrees, in either direction; 180 for images without an upright
    direction."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue; only the first two for images that do not
    have three channels."""
    max_class_share: float = 0.75
    """Largest share of a crop that one class may cover."""
    rare_class_crops: float = 0.0
    """Share of crops placed around a randomly chosen class; rare classes are chosen more often."""
    repeat_rare: float = 0.0
    """Repeat images with a class that fewer than this share of the images have, up to the root of
    this over the class's share times; 0 for none."""
    workers: int = -1
    """Data loader processes; 0 loads in the training process. -1 chooses: two for training on a
    CPU; one per core but one, at most eight, for a GPU."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        check_rules(
            self,
            "data.",
            ("crop_size", lambda v: min(v) > 0, "give positive pixels"),
            ("scale_range", lambda v: 0 < v[0] <= v[1], "give 0 < low <= high"),
            ("flip flip_vertical", lambda v: 0 <= v <= 1, "give a probability, 0 to 1"),
            ("fraction max_class_share", lambda v: 0 < v <= 1, "give a share above 0, at most 1"),
            ("rotate", lambda v: 0 <= v <= 180, "give degrees, 0 to 180"),
            ("rare_class_crops repeat_rare", lambda v: 0 <= v <= 1, "give a share, 0 to 1"),
            ("workers", lambda v: v >= -1, "give 0 or more, or -1 to let it choose"),
            ("short_side long_side", lambda v: v > 0, "give at least 1 pixel"),
        )
        check_setting(
            self.long_side is None or self.short_side is not None,
            "data.long_side limits the scaling to data.short_side: give that too",
        )


@dataclass(frozen=True)
class EvalConfig:
    """How the trained model is tested; stored with the model."""

    protocol: Literal["paper-ss", "mmseg-ss", "whole"] | None = None
    """Named protocol; window and stride below apply only to data sets that are not the paper's."""
    window: tuple[int, int] | None = None
    """Height and width of the sliding window in pixels; whole images if not given."""
    stride: tuple[int, int] | None = None
    """Vertical and horizontal step of the window in pixels; the window's size if not given."""
    multi_scale: bool = False
    """After training, also test with the paper's six scales and flip."""

    def __post_init__(self) -> None:
        check_fields(self, "eval.")
        window, stride = self.window, self.stride
        check_rules(self, "eval.", ("window", lambda v: min(v) > 0, "give positive pixels"))
        check_setting(
            stride is None or window is not None, f"eval.stride {stride}: give eval.window too"
        )
        if window and stride:
            check_setting(
                all(0 < s <= w for s, w in zip(stride, window, strict=True)),
                f"eval.stride {stride}: give 1 to the window's sides {window}",
            )
        check_setting(
            window is None or self.protocol != "whole",
            f"eval.window {window}: the protocol whole has none; give --eval.window None "
            "--eval.stride None, or another protocol",
        )


@dataclass(frozen=True)
class Config:
    """One training run.

    `recipe` is its name in reports and `out` its folder; `model`, `data`, `optim`, `train`,
    `distill` and `eval` are frozen dataclasses, too. `replace` makes a copy with other values. What
    each setting means is in the help of `setr train finetune` (`--train.steps` is
    `config.train.steps`).

    Raises:
        SetrError: a value of another type or out of range; so do the parts.
    """

    recipe: str = "custom"
    """Name of the run in reports."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "runs/setr"
    """Run folder, where everything is written."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        check_setting(bool(self.out), "out '': give the folder of the run, . for the current one")
        check_setting(
            self.train.cache_features == "none" or self.model.freeze == -1,
            "train.cache_features: features stay the same only with --model.freeze -1",
        )
        check_setting(
            self.train.cache_features == "none" or self.distill.teacher is None,
            "train.cache_features: a teacher needs the images; leave out distill.teacher or this",
        )
        for name in ("flip_vertical", "rotate", "rare_class_crops"):
            value, kept = getattr(self.data, name), self.train.cache_features
            check_setting(
                kept == "none" or not value,
                f"data.{name} {value}: has no effect with train.cache_features {kept}; leave one "
                "of them out",
            )

    @answers_keywords("replace", lambda name: replacing(name, "use "))
    def replace(self, changes: Mapping[str, Any]) -> Config:
        """A copy with other settings, by the names of the command line's options.

        `config.replace({"data.root": "photos", "train.epochs": 20})`. As there, steps replace
        epochs and epochs steps. A name without a dot is a field of this class.

        Raises:
            SetrError: an unknown name (what was probably meant is named), or as the classes.
        """
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        known = {option.dotted for option in options_of(Config)} | parts.keys()
        inner: dict[str, dict[str, Any]] = {}
        for given, value in dict(changes).items():
            part, dot, key = setting_name(given, known).partition(".")
            if dot:
                inner.setdefault(part, {})[key] = value
            else:
                parts[part] = value
        for part, values in inner.items():
            if part == "train" and len({"steps", "epochs"} & values.keys()) == 1:
                values = {"steps": 0, "epochs": 0.0, **values}
            parts[part] = dataclasses.replace(parts[part], **values)
        return Config(**parts)

    def to_yaml(self) -> str:
        """All settings as YAML; `from_yaml` gives an equal object back."""
        return typed_yaml.dump(self)

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "config") -> Config:
        """Read settings; missing keys take their defaults.

        Args:
            text: YAML as `to_yaml` writes it.
            source: name of the file, for messages.

        Raises:
            SetrError: not YAML, an unknown key (the nearest is suggested), or a value out of range.
        """
        return typed_yaml.parse(cls, text, source)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Config:
        """Read settings from a YAML file, such as a run's config.yaml.

        Raises:
            SetrError: no such file, or as `from_yaml`.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: no such config file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not UTF-8; save it in that encoding") from None
        return cls.from_yaml(text, source=str(path))


def setting_name(given: object, known: Container[str], prefix: str = "") -> str:
    """A setting's name, which may be given as its option `--train.batch-size`.

    Raises:
        UsageError: none of the known ones; the message begins with `prefix`.
    """
    name = str(given).removeprefix("--").replace("-", "_")
    if name not in known:
        near = [option.dotted for option in meant(name, options_of(Config))]
        hint = f"did you mean {' or '.join(near)}?" if near else "see `setr train --help`"
        raise UsageError(f"{prefix}{given}: there is no such setting; {hint}")
    return name


def replacing(name: str, before: str) -> str:
    """How to give the setting that an unknown keyword may mean, after a text; empty for none."""
    found = meant(name, options_of(Config))
    return f"{before}replace({{'{found[0].dotted}': …}})" if found else ""
