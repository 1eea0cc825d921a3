"""Times a few training steps and forward passes on random pixels, with a run's own settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from setr.config import Config
from setr.data.dataset import Dataset
from setr.estimate import explain_out_of_memory
from setr.inference import normalize
from setr.layers.precision import autocast, autocast_dtype
from setr.model import SETR
from setr.training.build import build_model, without_weights
from setr.training.loss_scale import LossScaler
from setr.training.optim import MovingAverage, build_optimizer
from setr.training.parallel import Parallel
from setr.training.sources import Source
from setr.training.teacher import open_teacher
from setr.training.updates import Updates

LOADING = 1.25
"""Factor on times on a CPU, whose cores also load the data."""


class Timing(NamedTuple):
    """Seconds, measured on random pixels.

    Attributes:
        step: of an optimiser step.
        image: of a forward pass for an image of the crop's size.
    """

    step: float
    image: float


class _Noise(Source):
    """Batches of random pixels, or of stored features of such, on a device.

    Args:
        model: on the device.
        dtype: of autocast; None for fp32.
    """

    def __init__(self, config: Config, model: SETR, dtype: torch.dtype | None) -> None:
        super().__init__(config, model.encoder.widths)
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        self.pixels = torch.randint(
            256,
            (config.train.batch_size, *config.data.crop_size, len(config.model.mean)),
            dtype=torch.uint8,
            device=self.device,
        )

    def images(self, count: int | None = None) -> Tensor:
        """Normalised images (B, C, H, W)."""
        return normalize(self.pixels[:count], self.config.model.mean, self.config.model.std)

    def batch(self) -> Tensor:
        """What the source of a run's batches would give."""
        if self.config.train.cache_features == "none":
            return self.pixels
        with torch.no_grad(), autocast(self.device, self.dtype):
            maps = torch.cat(self.model.encoder(self.images(1)), dim=1).to(torch.float16)
        return maps.expand(len(self.pixels), -1, -1, -1)


def measure(config: Config, dataset: Dataset, device: torch.device, *, repeats: int = 3) -> Timing:
    """The shortest times of a few steps and passes with these settings, after the first ones.

    The shortest, because other work may come and go while so few are timed. A teacher and stored
    features are part of a step as in the run.

    Raises:
        SetrError: the step needs more memory than there is; says what needs less. Or the teacher
            does not fit the data.
    """
    labels, train = dataset.labels, config.train
    K = len(labels.classes)
    dtype = autocast_dtype(train.precision, device)
    teacher = open_teacher(config, labels, dataset.bands, device, dtype)
    model = build_model(without_weights(config), K).to(device)
    noise = _Noise(config, model, dtype)
    updates = Updates(
        config,
        Parallel(model, "none", compiled=train.compile),
        noise,
        build_optimizer(model, config.optim),
        LossScaler(device, enabled=dtype is torch.float16),
        ema=MovingAverage(model, train.ema) if train.ema else None,
        teacher=teacher,
        dtype=dtype,
    )
    inputs, shape = noise.batch(), (train.batch_size, *config.data.crop_size)
    masks = torch.randint(K, shape, dtype=torch.uint8, device=device)
    first = 4 if device.type == "cuda" else 1

    def shortest(work: Callable[[int], object]) -> float:
        seconds = []
        for number in range(first + repeats):
            began = time.perf_counter()
            with explain_out_of_memory(config, K, device):
                work(number)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        return min(seconds[first:]) * (LOADING if device.type == "cpu" else 1.0)

    step = shortest(lambda number: updates.step(number, inputs, masks))
    model.eval()
    with torch.inference_mode(), autocast(device, dtype):
        return Timing(step, shortest(lambda _: model(noise.images(1))))
