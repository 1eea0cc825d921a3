"""Chooses the settings of a run for a data set, a machine and a time (`setr auto`).

A choice is an option of `setr train` as a user would type it, so that every run can be repeated
and changed without this module.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from setr.config import Config
from setr.doctor import Checkup
from setr.kernels.windows import window_starts
from setr.protocols import Protocol

Choices = dict[str, tuple[int | float, ...]]
"""Values by option of `setr train`, without the leading dashes; a switch has no value."""

TRAINING = 0.75
"""Share of the time for training; the rest is for loading, testing and exporting."""
EPOCHS = 100
"""Most passes over the training split, unless they are fewer than `LEAST` steps."""
LEAST = 2000
MOST = 40_000
"""Most steps."""
FEW_PASSES = 10
"""Of pretrained models that see each image less often, augmentation costs more than it brings."""


class Extent(NamedTuple):
    """Number of images and their median size.

    Attributes:
        images: in the split.
        short: side in pixels.
        long: side in pixels.
    """

    images: int
    short: int
    long: int


class _Scale(NamedTuple):
    """Limits in pixels: of the images' short side, and of the crop's sides."""

    least: int
    most: int
    crop: int


_SCALES = {
    ("finetune", "cuda"): _Scale(224, 672, 448),
    ("finetune", "cpu"): _Scale(224, 448, 364),
    ("scratch", "cuda"): _Scale(96, 384, 256),
    ("scratch", "cpu"): _Scale(96, 256, 192),
}


def extent(checkup: Checkup) -> Extent:
    """Number of images of a checked split, and their median size."""
    size = checkup.survey.size
    readable = size[size[:, 0] > 0]
    short, long = (int(np.median(side(readable, axis=1))) for side in (np.min, np.max))
    return Extent(len(checkup.dataset), short, long)


def scale_choices(
    recipe: str, data: Extent, device: torch.device, *, patch: int, short_side: int | None = None
) -> Choices:
    """Image size, crop size and batch size for images of this size.

    Images whose median short side is outside the recipe's limits for this kind of device are
    resized; crops are square, multiples of the patch, and no larger than the images.

    Args:
        recipe: `finetune` or `scratch`.
        data: the training split.
        patch: patch size of the encoder in pixels.
        short_side: in pixels, to which the user has images resized.
    """
    limits = _SCALES[recipe, device.type]
    short = short_side or min(max(data.short, limits.least), limits.most)
    side = max(min(short, limits.crop) // patch, 1) * patch
    chosen: Choices = {"data.crop-size": (side, side)}
    if short != data.short:
        chosen["data.short-side"] = (short,)
    if recipe == "finetune" and device.type == "cpu":  # as the recipes for CamVid on a CPU
        chosen["model.no-aux"] = ()
        chosen["train.batch-size"] = (4,)
    return chosen


def shrinking(config: Config, data: Extent, patch: int) -> str:
    """What is said of images that are scaled to half their size or less; empty for others.

    Args:
        config: settings with the image size that was chosen.
        data: the training split.
        patch: patch size of the encoder in pixels.
    """
    short = config.data.short_side
    if short is None or 2 * short > data.short:
        return ""
    height, width = config.data.crop_size
    return (
        f"images are scaled to a short side of {short} pixels to save time; a patch of the encoder "
        f"then covers {round(patch * data.short / short)} of their pixels a side, and things "
        f"thinner than about {math.ceil(data.short / short)} may vanish. For small or thin things, "
        f"keep the size: --data.short-side {data.short} --eval.window {height} {width} (slower)"
    )


def length_choices(
    config: Config, data: Extent, *, minutes: float, step: float, test: float, before: float = 0.0
) -> Choices:
    """Steps, and what depends on them, that fit a time.

    Args:
        config: settings without these choices.
        data: the training split.
        minutes: for the whole run, tests included.
        step: seconds of an optimiser step.
        test: seconds of a test on the validation split.
        before: seconds before the first step.
    """
    epochs = EPOCHS * data.images // config.train.batch_size
    most = min(max(LEAST, epochs), MOST)
    steps = max(1, min(int((60 * minutes * TRAINING - before) / step), most))
    every = -(-steps // 5)
    often = 4 * test < 0.15 * 60 * minutes or config.train.patience  # which counts tests
    few = steps * config.train.batch_size < FEW_PASSES * data.images
    milder: Choices = {"data.scale-range": (0.75, 1.5), "data.no-photometric": ()}
    return {
        **(milder if few and config.model.pretrained else {}),
        "train.steps": (steps,),
        "optim.warmup-steps": (min(config.optim.warmup_steps, steps // 10),),
        "train.ema": (min(config.train.ema, round(1 - 1 / max(2.0, steps / 10), 4)),),
        "train.eval-every": (every if often else 0,),
        "train.save-every": (max(1, min(1000, steps // 5)),),
        "train.log-every": (max(1, min(50, steps // 20)),),
    }


def seconds_before(config: Config, data: Extent, image: float) -> float:
    """Rough time before the first step: the encoder's features, if the run stores them.

    Args:
        data: the training split.
        image: seconds of a forward pass for an image of the crop's size.
    """
    views = {"none": 0, "once": 1, "flip": 2}[config.train.cache_features]
    return views * data.images * image


def seconds_per_test(
    protocol: Protocol, crop_size: tuple[int, int], data: Extent, image: float
) -> float:
    """Rough time of a test on a split, from the pixels that the model sees.

    Pixels where windows overlap count once per window.

    Args:
        protocol: of the test, single-scale.
        crop_size: (H, W) in pixels of the crops.
        data: the split, of which images are taken to be wider than high.
        image: seconds of a forward pass for an image of the crop's size.
    """
    sides = protocol.view_size(data.short, data.long, 1.0)
    window, stride = protocol.window, protocol.stride or protocol.window
    if window and stride:
        areas = zip(sides, window, stride, strict=True)
        height, width = (len(window_starts(S, w, s)) * min(S, w) for S, w, s in areas)
        sides = height, width
    H, W = crop_size
    return data.images * sides[0] * sides[1] / (H * W) * image
