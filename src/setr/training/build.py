"""Builds the parts of a run from its settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr._extras import import_extra
from setr.bands import Bands
from setr.catalog import is_convolutional
from setr.config import Config, ModelConfig
from setr.data.dataset import Dataset
from setr.data.loader import Share, chosen_workers
from setr.distributed import say, world
from setr.doctor import check, describe_map, map_a_class
from setr.errors import USAGE, SetrError
from setr.labels import Labels
from setr.layers.mask_classifier import MaskClassifier
from setr.lora import add_lora
from setr.model import SETR, create_model
from setr.model_info import ModelInfo
from setr.processes.progress import counting
from setr.protocols import Protocol, preset
from setr.scores.adjustment import class_biases
from setr.training.complexity import parameter_counts
from setr.training.weighting import by_class, class_weights, described, named_weights
from setr.transforms import Augmentation, fill_colour, rare_class_odds
from setr.weight_files.pretrained import load_encoder, require_fit, require_weights


def build_model(config: Config, num_classes: int, *, quiet: bool = False) -> SETR:
    """The model to train, with pretrained weights, frozen blocks and LoRA as configured."""
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
        neck=settings.neck,
        pos_interp=settings.pos_interp,
        prefix_tokens=settings.prefix_tokens,
        patch_stride=settings.patch_stride,
        encoder_args={"drop_path_rate": settings.drop_path} if settings.drop_path else {},
        in_chans=len(settings.mean),
    )
    for source, resnet in _pretrained_sources(model, settings):
        report = load_encoder(model, source, resnet=resnet)
        say(f"encoder: weights of {source}: {report}")
        # our models come with their own values, and these codes' with ImageNet's
        own = Path(source).is_dir() or report.dialect in ("official", "mmseg", "eomt")
        if not resnet and not own:
            _note_other_normalisation(model, settings)
    if settings.lora_rank:
        add_lora(model, settings.lora_rank)
    else:
        model.encoder.freeze(settings.freeze)
    trained, total = parameter_counts(model)
    if trained < total and not quiet:
        say(f"training {trained:,} of {total:,} parameters ({trained / total:.1%})")
    return model


def require_buildable(config: Config, *, weights: bool) -> None:
    """Check that the model can be built, without allocating it or reading data.

    Args:
        config: settings of the run.
        weights: also check that the pretrained weights exist.

    Raises:
        SetrError: an unknown name, parts that do not fit together, missing weights.
    """
    with torch.device("meta"):
        model = build_model(without_weights(config), 1, quiet=True)
    if isinstance(model.decoder, MaskClassifier):
        _require_mask_training(config, model)
    for source, resnet in _pretrained_sources(model, config.model) if weights else ():
        require_weights(model, source, resnet=resnet)


def _require_mask_training(config: Config, model: SETR) -> None:
    """Raise `SetrError` if settings do not fit a model with its own loss, or SciPy is missing."""
    train = config.train
    if train.loss != "cross_entropy":
        raise SetrError(
            f"train.loss {train.loss}: EoMT has a loss of its own; leave it out", code=USAGE
        )
    if train.cache_features != "none":
        raise SetrError(
            f"train.cache_features {train.cache_features}: EoMT's queries change the encoder's "
            "features; leave it out",
            code=USAGE,
        )
    if config.distill.teacher:
        raise SetrError(
            "distill.teacher: EoMT learns masks, not a teacher's classes of pixels; leave it out",
            code=USAGE,
        )
    if train.adjust_logits:
        class_biases(model)
    import_extra("scipy", "eomt", "training EoMT")


def require_fitting_weights(config: Config) -> None:
    """Check that the pretrained weights fit the encoder, before the slow check of the data.

    Args:
        config: settings of a new run, with the normalisation of its data.

    Raises:
        SetrError: names the first tensor that does not fit, or a file that holds no weights.
    """
    bare = dataclasses.replace(config.model, lora_rank=0)  # pretrained weights have no LoRA layers
    with torch.device("meta"):
        model = build_model(without_weights(dataclasses.replace(config, model=bare)), 1, quiet=True)
    for source, _ in _pretrained_sources(model, config.model):
        require_fit(model, source)


def _pretrained_sources(model: SETR, settings: ModelConfig) -> list[tuple[str, bool]]:
    """Sources of pretrained weights, each with whether it is for the ResNet of the encoder."""
    if settings.pretrained_resnet and not model.arguments["resnet"]:
        raise SetrError(
            f"model.pretrained_resnet: {settings.name} has no ResNet in front of its encoder; give "
            "encoder weights with --model.pretrained",
            code=USAGE,
        )
    found = (settings.pretrained, False), (settings.pretrained_resnet, True)
    return [(source, resnet) for source, resnet in found if source]


def _note_other_normalisation(model: SETR, settings: ModelConfig) -> None:
    """Print a note if the weights were trained with another mean or standard deviation."""
    if model.encoder.in_chans != 3:
        return  # pretrained on RGB images
    trained = getattr(getattr(model.encoder, "vit", None), "pretrained_cfg", None) or {}
    theirs = {name: tuple(trained.get(name) or getattr(settings, name)) for name in ("mean", "std")}
    pairs = [pair for k in theirs for pair in zip(theirs[k], getattr(settings, k), strict=True)]
    if any(abs(a - b) > 1e-4 for a, b in pairs):  # 0.03 grey levels; the note has six digits
        options = " ".join(f"--model.{k} {' '.join(f'{v:g}' for v in theirs[k])}" for k in theirs)
        say(f"note: {model.arguments['encoder']} was trained with {options}; this run is not")


def without_weights(config: Config) -> Config:
    """The settings without pretrained weights."""
    model = dataclasses.replace(config.model, pretrained=None, pretrained_resnet=None)
    return dataclasses.replace(config, model=model)


def announce(config: Config, images: int) -> None:
    """Warn of settings that may be a mistake: random weights, a warm-up that never ends.

    Args:
        config: settings of the run.
        images: number of images in the training split.
    """
    model, warmup, steps = config.model, config.optim.warmup_steps, config.train.steps
    patience, every = config.train.patience, config.train.eval_every
    if not (model.pretrained or model.pretrained_resnet):
        say("encoder: random weights; --model.pretrained TAG or FILE starts from trained ones")
        for name in ("freeze", "lora_rank"):
            if value := getattr(model, name):
                say(f"warning: model.{name} {value} freezes random weights")
    if (batch := config.train.batch_size) > images:
        say(
            f"note: split '{config.data.train_split}' has {images} images; every batch of "
            f"{batch} has several crops of the same ones"
        )
    if warmup >= steps:
        say(
            f"warning: optim.warmup_steps {warmup} of {steps}: the learning rate never reaches "
            f"optim.lr {config.optim.lr:g}"
        )
    if patience and (first := (patience + 1) * every) >= steps:
        say(
            f"warning: train.patience {patience} with train.eval_every {every}: cannot stop the "
            f"training before step {first}; it has {steps}"
        )


def with_steps(config: Config, images: int, before: Mapping[str, Any] | None = None) -> Config:
    """The settings with `train.epochs` converted to steps.

    Args:
        config: settings of the run, with the final batch size.
        images: number of images in the training split.
        before: facts of the run to resume.

    Raises:
        SetrError: the run to resume has another number of steps.
    """
    train = config.train
    if not train.epochs:
        return config
    steps = math.ceil(Fraction(str(train.epochs)) * images / train.batch_size)
    epochs = f"train.epochs {train.epochs:g}"
    if before and before["train.steps"] != steps:
        raise SetrError(
            f"{epochs}: this is {steps} steps, the run to continue has {before['train.steps']}; "
            f"leave it out, or give --train.steps {steps}",
            code=USAGE,
        )
    say(f"{epochs}: {steps} steps, of {images} images in batches of {train.batch_size}")
    return dataclasses.replace(config, train=dataclasses.replace(train, steps=steps, epochs=0.0))


def with_workers(config: Config, device: torch.device) -> Config:
    """The settings with a number of loader processes for this machine, unless one was given."""
    if config.data.workers >= 0:
        return config
    data = dataclasses.replace(config.data, workers=chosen_workers(device))
    return dataclasses.replace(config, data=data)


def _given_weights(config: Config, labels: Labels) -> list[float] | None:
    named = named_weights(config.train.class_weights)
    return by_class(named, labels.classes) if named else None


def build_weights(
    config: Config, labels: Labels, pixels: np.ndarray, device: torch.device
) -> Tensor | None:
    """Class weights (K,), given or from pixel counts (K,) of the training split; prints them."""
    kind = config.train.class_weights
    if kind == "none":
        return None
    found = _given_weights(config, labels) or class_weights(pixels, kind).tolist()
    say(f"class weights: {described(found, labels.classes)}")
    return torch.tensor(found, dtype=torch.float32, device=device)


def checked_pixels(config: Config, dataset: Dataset, val: Dataset) -> np.ndarray:
    """Check both splits and print the findings; the pixel counts (K,) of the training split.

    Raises:
        SetrError: pairs that cannot be used, a split without labelled pixels, or class weights for
            unknown classes.
    """
    _given_weights(config, dataset.labels)  # fail before reading files
    say(f"{dataset.name}: {describe_map(dataset.labels)}")
    if dataset.bands:
        say(f"images: {dataset.bands}")
    for split in (val, dataset):
        checkup = check(split, progress=counting(f"check {split.split}"))
        checkup.require_counted(map_a_class("val" if split is val else "train"))
        for finding in checkup.findings:
            say(f"{finding.level}: {finding.split}: {finding.text}")
    return checkup.pixels


def build_augmentation(config: Config, pixels: np.ndarray) -> Augmentation:
    """The augmentation for a training split with these pixel counts (K,)."""
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
    """The information stored with the model."""
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
    grid = None if is_convolutional(config.model.name) else config.data.crop_size
    return preset(config.eval.protocol, own=own, labels=labels, grid=grid)


def build_share(config: Config, rank: int) -> Share:
    """The share of every batch that process `rank` computes.

    Raises:
        SetrError: the batch cannot be divided equally.
    """
    batch, parts = config.train.batch_size, config.train.accumulate
    if batch % (world() * parts):
        raise SetrError(
            f"train.batch_size {batch}: must be a multiple of processes ({world()}) x "
            f"train.accumulate ({parts})",
            code=USAGE,
        )
    return Share(rank, world(), parts)
