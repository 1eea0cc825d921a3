"""Distillation: a trained model whose predictions another one learns, beside the labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from setr.bands import Bands
from setr.config import Config, DistillConfig
from setr.errors import UsageError
from setr.hub import from_pretrained
from setr.inference import normalize
from setr.kernels.divergence import upsample_divergence
from setr.labels import Labels
from setr.layers.precision import autocast
from setr.model import SETR, Output
from setr.model_info import ModelInfo
from setr.training.facts import weights_digest


class Taught(NamedTuple):
    """What a teacher says about the crops of a micro-batch.

    Attributes:
        output: its predictions.
        counted: (B, H, W), `IGNORE` where they do not count.
        pixels: the number of those that count in the whole step.
    """

    output: Output
    counted: Tensor
    pixels: Tensor


class Teacher:
    """Predicts the classes of training crops, and compares them with a student's predictions.

    Args:
        model: of the same classes and channels as the student.
        settings: weight and temperature of the loss.
        dtype: of autocast; None for fp32.
    """

    def __init__(
        self,
        model: SETR,
        info: ModelInfo,
        settings: DistillConfig,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self.digest = weights_digest(model)
        self.model = model.eval().requires_grad_(False).to(device)
        self.info, self.settings, self.device, self.dtype = info, settings, device, dtype

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Output:
        """The predictions for crops uint8 (B, H, W, C), on the device."""
        images = normalize(pixels, self.info.mean, self.info.std)
        with autocast(self.device, self.dtype):
            return self.model.coarse(images)

    def loss(self, student: Output, taught: Taught) -> Tensor:
        """A micro-batch's part of the mean divergence of a student's predictions from these."""
        distance = upsample_divergence(
            student.logits,
            taught.output.logits,
            taught.counted,
            student.size,
            taught.output.size,
            temperature=self.settings.temperature,
        )
        return distance / taught.pixels.clamp(min=1)


def open_teacher(
    config: Config,
    labels: Labels,
    bands: Bands | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Teacher | None:
    """The teacher of a run, if it has one.

    Args:
        labels: of the training data.
        bands: of the training data.
        dtype: of autocast; None for fp32.

    Raises:
        SetrError: no such model, or one with other classes or bands than the data.
    """
    source = config.distill.teacher
    if source is None:
        return None
    model, info = from_pretrained(source)
    if info.labels.classes != labels.classes:
        raise UsageError(f"distill.teacher {source}: {_difference(info.labels, labels)}")
    if info.bands != bands:
        raise UsageError(
            f"distill.teacher {source}: reads {info.bands or 'RGB'}, the data have "
            f"{bands or 'RGB'}; give a teacher trained on the same bands"
        )
    return Teacher(model, info, config.distill, device, dtype)


def _difference(own: Labels, labels: Labels) -> str:
    """What the classes of a teacher and of the data do not share, for a message."""
    pairs = enumerate(zip(own.classes, labels.classes, strict=False))
    at = next((f"class {i} is '{a}', the data's '{b}'" for i, (a, b) in pairs if a != b), "")
    counts = f"has {len(own.classes)} classes, the data {len(labels.classes)}"
    return f"{at or counts}; give a teacher trained on the same classes in the same order"
