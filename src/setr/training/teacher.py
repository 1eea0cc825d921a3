"""Distillation: a trained model whose predictions another one learns, beside the labels.

Several teachers count alike: the mean of the divergences from each has the gradient of that from
the mean of their probabilities, and needs no more than one teacher's predictions at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from setr.model_sources import sources_of
from setr.training.facts import weights_digest


class Taught(NamedTuple):
    """What teachers say about the crops of a micro-batch.

    Attributes:
        outputs: the predictions of each.
        counted: (B, H, W), `IGNORE` where they do not count.
        pixels: the number of those that count in the whole step.
    """

    outputs: list[Output]
    counted: Tensor
    pixels: Tensor


class Teacher:
    """Predicts the classes of training crops, and compares them with a student's predictions.

    Args:
        members: one or more models of the same classes and channels as the student, with what each
            was stored with.
        settings: weight and temperature of the loss.
        dtype: of autocast; None for fp32.
    """

    def __init__(
        self,
        members: Sequence[tuple[SETR, ModelInfo]],
        settings: DistillConfig,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self.digest = "+".join(weights_digest(model) for model, _ in members)
        self.members = [
            (model.eval().requires_grad_(False).to(device), info) for model, info in members
        ]
        self.settings, self.device, self.dtype = settings, device, dtype

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> list[Output]:
        """The predictions for crops uint8 (B, H, W, C), on the device."""
        given = ((model, normalize(pixels, info.mean, info.std)) for model, info in self.members)
        with autocast(self.device, self.dtype):
            return [model.coarse(images) for model, images in given]

    def loss(self, student: Output, taught: Taught) -> Tensor:
        """A micro-batch's part of the mean divergence of a student's predictions from these."""
        distances = [
            upsample_divergence(
                student.logits,
                output.logits,
                taught.counted,
                student.size,
                output.size,
                temperature=self.settings.temperature,
            )
            for output in taught.outputs
        ]
        mean = torch.stack(distances).sum() / len(distances)
        return mean / taught.pixels.clamp(min=1)


def open_teacher(
    config: Config,
    labels: Labels,
    bands: Bands | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Teacher | None:
    """The teacher of a run, if it has one; of several models, all of them.

    Args:
        labels: of the training data.
        bands: of the training data.
        dtype: of autocast; None for fp32.

    Raises:
        SetrError: no such model, or one with other classes or bands than the data.
    """
    if config.distill.teacher is None:
        return None
    members = []
    for source in sources_of(config.distill.teacher):
        model, info = from_pretrained(source)
        if info.labels.classes != labels.classes:
            raise UsageError(f"distill.teacher {source}: {_difference(info.labels, labels)}")
        if info.bands != bands:
            raise UsageError(
                f"distill.teacher {source}: reads {info.bands or 'RGB'}, the data have "
                f"{bands or 'RGB'}; give a teacher trained on the same bands"
            )
        members.append((model, info))
    return Teacher(members, config.distill, device, dtype)


def _difference(own: Labels, labels: Labels) -> str:
    """What the classes of a teacher and of the data do not share, for a message."""
    pairs = enumerate(zip(own.classes, labels.classes, strict=False))
    at = next((f"class {i} is '{a}', the data's '{b}'" for i, (a, b) in pairs if a != b), "")
    counts = f"has {len(own.classes)} classes, the data {len(labels.classes)}"
    return f"{at or counts}; give a teacher trained on the same classes in the same order"
