"""Settings that follow from the data and the machine: steps, workers, shares of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch

from setr.config import Config
from setr.data.order import Share
from setr.data.workers import chosen_workers
from setr.distributed import place_name, say, world
from setr.errors import UsageError


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
    labelled = train.batch_size - unlabelled_count(config)
    steps = math.ceil(Fraction(str(train.epochs)) * images / labelled)
    epochs = f"train.epochs {train.epochs:g}"
    if before and before["train.steps"] != steps:
        raise UsageError(
            f"{epochs}: this is {steps} steps, the run to continue has {before['train.steps']}; "
            f"leave it out, or give --train.steps {steps}"
        )
    say(f"{epochs}: {steps} steps, of {images} images in batches of {labelled}")
    return config.replace({"train.steps": steps, "train.epochs": 0.0})


def unlabelled_count(config: Config) -> int:
    """Number of images of `distill.images` in a batch; every batch has labelled ones, too.

    Raises:
        SetrError: a batch of one image.
    """
    batch = config.train.batch_size
    if config.distill.images is None:
        return 0
    if batch < 2:
        raise UsageError(
            f"train.batch_size {batch}: give at least 2, for a labelled image and one of "
            "distill.images"
        )
    return min(max(round(config.distill.share * batch), 1), batch - 1)


def with_workers(config: Config, device: torch.device) -> Config:
    """The settings with a number of loader processes for this machine, unless one was given."""
    if config.data.workers >= 0:
        return config
    return config.replace({"data.workers": chosen_workers(device)})


def build_share(config: Config, rank: int) -> Share:
    """The share of every batch that process `rank` computes.

    Raises:
        SetrError: the batch cannot be divided equally.
    """
    batch, parts = config.train.batch_size, config.train.accumulate
    if batch % (world() * parts):
        raise UsageError(
            f"train.batch_size {batch}: must be a multiple of processes ({world()}) x "
            f"train.accumulate ({parts})"
        )
    return Share(rank, world(), parts)


def headline(
    config: Config, counts: tuple[int, int], images: int, device: torch.device, precision: str
) -> str:
    """What a run trains, where and how long, in a line.

    Args:
        counts: numbers of trained and of all parameters.
        images: number of images in the training split.
        precision: such as bf16.
    """
    train, (H, W), (trained, total) = config.train, config.data.crop_size, counts
    part = f" of {total:,}" if trained < total else ""
    share = f" ({trained / total:.1%})" if part else ""
    place = place_name(device)
    place = f"{world()} processes, the first on {place}," if world() > 1 else place
    passes = train.steps * (train.batch_size - unlabelled_count(config)) / images
    return (
        f"training {trained:,}{part} parameters{share} on {place} in {precision}: {train.steps} "
        f"steps of {train.batch_size} crops of {H}x{W}, {passes:.3g} passes over {images} images"
    )


def announce(config: Config, images: int) -> None:
    """Warn of settings that may be a mistake: random weights, a warm-up that never ends.

    Args:
        images: number of images in the training split.
    """
    model, warmup, steps = config.model, config.optim.warmup_steps, config.train.steps
    patience, every = config.train.patience, config.train.eval_every
    if not (model.pretrained or model.pretrained_resnet):
        tag = (model.encoder or "").partition(".")[2]  # of timm, which loads nothing by itself
        given, them = (tag, "those of its name") if tag else ("TAG or FILE", "trained ones")
        say(f"encoder: random weights; --model.pretrained {given} starts from {them}")
        for name in ("freeze", "lora_rank"):
            if value := getattr(model, name):
                say(f"warning: model.{name} {value} freezes random weights")
    if (batch := config.train.batch_size - unlabelled_count(config)) > images:
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
