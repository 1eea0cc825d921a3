"""From the settings of a run to its parts: the last place that sees a `Config`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from setr.bands import Bands
from setr.complexity import parameter_counts
from setr.config import Config, ModelConfig
from setr.datasets import Dataset
from setr.distributed import say, world
from setr.doctor import check, describe_map
from setr.errors import USAGE, SetrError
from setr.hub import ModelInfo
from setr.inference import Protocol
from setr.labels import Labels
from setr.loader import Share
from setr.lora import add_lora
from setr.model import SETR, create_model
from setr.pretrained import load_encoder
from setr.progress import counting
from setr.protocols import preset
from setr.transforms import Augmentation, fill_colour, rare_class_odds


def build_model(config: Config, num_classes: int, *, quiet: bool = False) -> SETR:
    """The model to train, with what is frozen frozen."""
    settings = config.model
    model = create_model(
        settings.name,
        num_classes=num_classes,
        img_size=settings.img_size,
        encoder=settings.encoder,
        aux=settings.aux,
        channels=settings.channels,
        taps=settings.taps,
        align_corners=settings.align_corners,
        pos_interp=settings.pos_interp,
        prefix_tokens=settings.prefix_tokens,
        patch_stride=settings.patch_stride,
        encoder_args={"drop_path_rate": settings.drop_path} if settings.drop_path else {},
        in_chans=len(settings.mean),
    )
    if settings.pretrained_resnet and not model.arguments["resnet"]:
        raise SetrError(
            f"model.pretrained_resnet: {settings.name} has no ResNet in front of its encoder; give "
            "encoder weights with --model.pretrained",
            code=USAGE,
        )
    for source, resnet in ((settings.pretrained, False), (settings.pretrained_resnet, True)):
        if source:
            report = load_encoder(model, source, resnet=resnet)
            say(f"encoder: weights of {source}: {report}")
    if settings.pretrained and not Path(settings.pretrained).is_dir():  # a run has its own
        _compare_normalisation(model, settings)
    if settings.lora_rank:
        add_lora(model, settings.lora_rank)
    else:
        model.encoder.freeze(settings.freeze)
    trained, total = parameter_counts(model)
    if trained < total and not quiet:
        say(f"training {trained:,} of {total:,} parameters ({trained / total:.1%})")
    return model


def _compare_normalisation(model: SETR, settings: ModelConfig) -> None:
    """Say so where the weights were trained with another mean and deviation of the channels."""
    if model.encoder.in_chans != 3:
        return  # it was trained on no such pixels
    trained = getattr(getattr(model.encoder, "vit", None), "pretrained_cfg", None) or {}
    theirs = {name: tuple(trained.get(name) or getattr(settings, name)) for name in ("mean", "std")}
    if any(theirs[name] != getattr(settings, name) for name in theirs):
        options = " ".join(f"--model.{k} {' '.join(f'{v:g}' for v in theirs[k])}" for k in theirs)
        say(f"note: {model.arguments['encoder']} was trained on pixels with {options}; not so here")


def announce(config: Config) -> None:
    """Say what of a new run's settings may surprise: random weights, a warm-up that never ends."""
    model, warmup, steps = config.model, config.optim.warmup_steps, config.train.steps
    if not (model.pretrained or model.pretrained_resnet):
        say("encoder: random weights; --model.pretrained TAG or FILE starts from trained ones")
        for name in ("freeze", "lora_rank"):
            if value := getattr(model, name):
                say(f"warning: model.{name} {value} keeps random weights as they are")
    if warmup >= steps:
        say(
            f"warning: optim.warmup_steps {warmup} of {steps}: the learning rate never reaches "
            f"optim.lr {config.optim.lr:g}"
        )


def checked_pixels(dataset: Dataset, val: Dataset) -> np.ndarray:
    """Check both splits, say what was found, and count the training split's pixels: (K,).

    Raises:
        SetrError: pairs that cannot be used.
    """
    say(f"{dataset.name}: {describe_map(dataset.labels)}")
    if dataset.bands:
        say(f"images: {dataset.bands}")
    for split in (val, dataset):
        checkup = check(split, progress=counting(f"check {split.split}"))
        checkup.raise_problems()
        for finding in checkup.findings:
            say(f"{finding.level}: {finding.split}: {finding.text}")
    return checkup.pixels


def build_augmentation(config: Config, pixels: np.ndarray) -> Augmentation:
    """The augmentation of a training split with these pixel counts (K,)."""
    data = config.data
    return Augmentation(
        crop_size=data.crop_size,
        short_side=data.short_side,
        long_side=data.long_side,
        rare_crops=data.rare_class_crops,
        class_odds=rare_class_odds(pixels),
        scale_range=data.scale_range,
        flip=data.flip,
        flip_vertical=data.flip_vertical,
        rotate=data.rotate,
        photometric=data.photometric,
        max_class_share=data.max_class_share,
        fill=fill_colour(config.model.mean),
    )


def build_info(config: Config, labels: Labels, bands: Bands | None = None) -> ModelInfo:
    """What is stored with the model."""
    return ModelInfo(
        labels=labels,
        mean=config.model.mean,
        std=config.model.std,
        protocol=_protocol(config, labels),
        recipe=config.recipe,
        crop_size=config.data.crop_size,
        pretrained=config.model.pretrained and Path(config.model.pretrained).name,
        command=f"setr train config.yaml --out runs/{config.recipe}",
        bands=bands,
    )


def _protocol(config: Config, labels: Labels) -> Protocol:
    own = Protocol(
        window=config.eval.window,
        stride=config.eval.stride,
        short_side=config.data.short_side,
        long_side=config.data.long_side,
    )
    if config.eval.protocol is None:
        return own
    return preset(config.eval.protocol, own=own, labels=labels, grid=config.data.crop_size)


def build_share(config: Config, rank: int, pairs: int) -> Share:
    """The part of every batch that process `rank` computes, of a split with so many pairs.

    Raises:
        SetrError: the batch is larger than the split, or cannot be cut into equal parts.
    """
    batch, parts = config.train.batch_size, config.train.accumulate
    if batch > pairs:
        raise SetrError(
            f"train.batch_size {batch}: split '{config.data.train_split}' has {pairs} pairs; give "
            f"at most {pairs}, or list more images",
            code=USAGE,
        )
    if batch % (world() * parts):
        raise SetrError(
            f"train.batch_size {batch}: must be a multiple of processes ({world()}) x "
            f"train.accumulate ({parts})",
            code=USAGE,
        )
    return Share(rank, world(), parts)
