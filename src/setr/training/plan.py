"""Chooses the settings of a run for a data set, a machine and a time (`setr auto`).

A choice is an option of `setr train` as a user would type it, so that every run can be repeated
and changed without this module.
"""

from __future__ import annotations

import time
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from setr.config import Config
from setr.data.dataset import Dataset
from setr.doctor import Checkup
from setr.estimate import explain_out_of_memory
from setr.inference import normalize
from setr.layers.precision import autocast_dtype
from setr.training.build import build_model, without_weights
from setr.training.loss_scale import LossScaler
from setr.training.optim import MovingAverage, build_optimizer
from setr.training.parallel import Parallel
from setr.training.sources import Source
from setr.training.updates import Updates

Choices = dict[str, tuple[int | float, ...]]
"""Values by option of `setr train`, without the leading dashes; a switch has no value."""

TRAINING = 0.75
"""Share of the time for training; the rest is for loading, testing and exporting."""
LOADING = 1.25
"""Factor on a step's time on a CPU, whose cores also load the data."""
EPOCHS = 100
"""Most passes over the training split, unless they are fewer than `LEAST` steps."""
LEAST = 2000
MOST = 40_000
"""Most steps."""


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


def scale_choices(recipe: str, data: Extent, device: torch.device, *, patch: int) -> Choices:
    """Image size, crop size and batch size for images of this size.

    Images whose median short side is outside the recipe's limits for this kind of device are
    resized; crops are square, multiples of the patch, and no larger than the images.

    Args:
        recipe: `finetune` or `scratch`.
        data: the training split.
        device: where the run will be.
        patch: patch size of the encoder in pixels.
    """
    limits = _SCALES[recipe, device.type]
    short = min(max(data.short, limits.least), limits.most)
    side = max(min(short, limits.crop) // patch, 1) * patch
    chosen: Choices = {"data.crop-size": (side, side)}
    if short != data.short:
        chosen["data.short-side"] = (short,)
    if recipe == "finetune" and device.type == "cpu":  # as the recipes for CamVid on a CPU
        chosen["model.no-aux"] = ()
        chosen["train.batch-size"] = (4,)
    return chosen


def length_choices(
    config: Config, data: Extent, *, minutes: float, step: float, test: float
) -> Choices:
    """Steps, and what depends on them, that fit a time.

    Args:
        config: settings without these choices.
        data: the training split.
        minutes: for the whole run, tests included.
        step: seconds of an optimiser step.
        test: seconds of a test on the validation split.
    """
    epochs = EPOCHS * data.images // config.train.batch_size
    most = min(max(LEAST, epochs), MOST)
    steps = max(1, min(int(60 * minutes * TRAINING / step), most))
    every = -(-steps // 5)
    return {
        "train.steps": (steps,),
        "optim.warmup-steps": (min(config.optim.warmup_steps, steps // 10),),
        "train.ema": (min(config.train.ema, round(1 - 1 / max(2.0, steps / 10), 4)),),
        "train.eval-every": (every if 4 * test < 0.15 * 60 * minutes else 0,),
        "train.save-every": (max(1, min(1000, steps // 5)),),
        "train.log-every": (max(1, min(50, steps // 20)),),
    }


class _Noise:
    """Batches of random pixels on the device, for timing."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def inputs(self, part: Tensor) -> Tensor:
        """Normalise the pixels."""
        return normalize(part, self.config.model.mean, self.config.model.std)


def seconds_per_step(
    config: Config, dataset: Dataset, device: torch.device, *, repeats: int = 3
) -> float:
    """Shortest time of an optimiser step on random images, after the first steps.

    The shortest, because other work may come and go while so few are timed.

    Raises:
        SetrError: the step needs more memory than there is; says what needs less.
    """
    K, train = len(dataset.labels.classes), config.train
    dtype = autocast_dtype(train.precision, device)
    model = build_model(without_weights(config), K, quiet=True).to(device)
    updates = Updates(
        config,
        Parallel(model, "none"),
        cast("Source", _Noise(config)),
        dataset,
        build_optimizer(model, config.optim),
        LossScaler(device, enabled=dtype is torch.float16),
        ema=MovingAverage(model, train.ema) if train.ema else None,
        dtype=dtype,
    )
    shape = (train.batch_size, *config.data.crop_size)
    images = torch.randint(256, (*shape, len(config.model.mean)), dtype=torch.uint8, device=device)
    masks = torch.randint(K, shape, dtype=torch.uint8, device=device)
    seconds = []
    for number in range(repeats + (4 if device.type == "cuda" else 1)):
        began = time.perf_counter()
        with explain_out_of_memory(config, K, device):
            updates.step(number, images, masks)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[-repeats:]) * (LOADING if device.type == "cpu" else 1.0)


def seconds_per_test(config: Config, data: Extent, step: float) -> float:
    """Rough time of a test on a split: a step's forward pass is a third of it."""
    short = config.data.short_side or data.short
    pixels = short * data.long * short / data.short
    H, W = config.data.crop_size
    return step / 3 / config.train.batch_size * data.images * pixels / (H * W)
