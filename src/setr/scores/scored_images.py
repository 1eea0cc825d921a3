"""Predicts and scores images, on GPUs several of one size together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setr.bands import as_rgb
from setr.data.dataset import Dataset
from setr.errors import SetrError
from setr.inference import GPU_PIXELS, NormalizedImages, predict_mask
from setr.model_info import ModelInfo
from setr.processes.faults import is_out_of_memory
from setr.protocols import Protocol
from setr.scores.scorecard import Scorecard
from setr.scores.split_loss import SplitLoss

MAX_GROUP = {"cpu": 1, "cuda": 24}
"""Maximum number of consecutive images of equal size that are predicted together."""
MAX_GROUP_SCORES = 1 << 26
"""Maximum of images x pixels x classes in such a group; larger images are predicted one by one."""


class ScoredImage(NamedTuple):
    """An image of the split and its prediction.

    Attributes:
        number: index of the image in the split.
        name: path of the image below the data set's folder.
        image: uint8 RGB (H, W, 3), made from the first bands if the data set has others.
        truth: training ids (H, W) uint8; `IGNORE` is not counted.
        prediction: ids (H, W) uint8.
        confidence: probability of the predicted class (H, W) float32; None if neither `detailed`
            nor with a `measure`.
        figures: `miou` and `pixel_accuracy` of this image.
        measured: what the `measure` of the evaluation found for each pixel (H, W) float32; None
            without one.
    """

    number: int
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray | None
    figures: dict[str, float | None]
    measured: np.ndarray | None = None


Measure = Callable[[Tensor, Tensor], Tensor]
"""A number for each pixel from its scores: a block of them (B, K, r, W), whose softmax over K is
the probabilities, and the truth (B, r, W) -> (B, r, W) float32."""

Sample = tuple[int, Tensor, Tensor]
"""Index in the split, image (1, H, W, C) and mask (1, H, W)."""


def max_together(
    device: torch.device, protocol: Protocol, num_classes: int, height: int, width: int
) -> int:
    """Number of images of this size that are predicted together."""
    limit = MAX_GROUP.get(device.type, MAX_GROUP["cuda"])
    view = protocol.view_size(height, width, max(protocol.scales))
    sides = (min(pair) for pair in zip(protocol.window or view, view, strict=True))
    by_scores = MAX_GROUP_SCORES // (num_classes * height * width)
    return max(1, min(limit, GPU_PIXELS // math.prod(sides), by_scores))


Loaded = tuple[int, tuple[Tensor, Tensor] | SetrError]
"""Index in the split, and image and mask or why there are none."""


def fitting(samples: Iterable[Loaded], dataset: Dataset, protocol: Protocol) -> Iterator[Loaded]:
    """The samples, with an error in place of those that would be enlarged too far."""
    for index, sample in samples:
        if not isinstance(sample, SetrError):
            H, W = sample[0].shape[1:3]
            try:
                for scale in protocol.scales:
                    protocol.view_size(H, W, scale)
            except SetrError as error:
                sample = SetrError(f"{dataset.image_name(index)}: {error}")
        yield index, sample


def grouped_by_size(
    samples: Iterable[Loaded], group_size: Callable[[int, int], int]
) -> Iterator[list[Sample] | SetrError]:
    """Groups of consecutive images of equal size, at most `group_size(height, width)` in each.

    Errors of images that could not be read are yielded in between.
    """
    group: list[Sample] = []
    for index, sample in samples:
        if isinstance(sample, SetrError):
            if group:
                yield group
                group = []
            yield sample
            continue
        image = sample[0]
        if group and group[0][1].shape != image.shape:
            yield group
            group = []
        group.append((index, *sample))
        if len(group) >= group_size(*image.shape[1:3]):
            yield group
            group = []
    if group:
        yield group


def score_images(
    model: Any,
    info: ModelInfo,
    card: Scorecard,
    dataset: Dataset,
    group: list[Sample],
    loss: SplitLoss | None = None,
    measure: Measure | None = None,
) -> Iterator[ScoredImage]:
    """Predict a group of images together, or in halves if memory runs out; score each.

    With `loss`, their loss is added to it. With `measure`, images come with what it found.

    Raises:
        SetrError: scores that are not numbers; names the image, or the first and last of the group.
    """
    device = card.confusion.counts.device
    names = [dataset.image_name(index) for index, _, _ in group]
    images = torch.cat([image for _, image, _ in group])
    masks = torch.cat([mask for _, _, mask in group])
    x = NormalizedImages(images.to(device), info.mean, info.std)
    truths = masks.to(device)
    size = (masks.shape[-2], masks.shape[-1])
    seen = loss.images(truths) if loss else None
    found: list[Tensor] = []

    def watch(first: int, scores: Tensor) -> None:
        if seen:
            seen(first, scores)
        if measure:
            found.append(measure(scores, truths[:, first : first + scores.shape[2]]))

    predictions = None
    try:
        predictions, confidences = predict_mask(
            model,
            x,
            info.protocol,
            size=size,
            with_confidence=card.detailed or measure is not None,
            on_scores=watch if seen or measure else None,
        )
    except SetrError as error:
        which = names[0] if len(names) == 1 else f"one of {names[0]} to {names[-1]}"
        raise SetrError(f"{which}: {error}") from None
    except RuntimeError as error:
        if len(group) == 1 or not is_out_of_memory(error):
            raise
    if predictions is None:  # not in `except`, where the error keeps tensors alive
        middle = len(group) // 2
        for part in (group[:middle], group[middle:]):
            yield from score_images(model, info, card, dataset, part, loss, measure)
        return
    if loss and seen:
        loss.add(seen)
    measured = torch.cat(found, dim=1).cpu().numpy() if measure else None
    for i, (index, image, mask) in enumerate(group):
        confidence = None if confidences is None else confidences[i]
        figures = card.update(index, predictions[i], truths[i], confidence)
        yield ScoredImage(
            index,
            names[i],
            as_rgb(image[0].numpy()),
            mask[0].numpy(),
            predictions[i].cpu().numpy(),
            None if confidence is None else confidence.cpu().numpy(),
            figures,
            None if measured is None else measured[i],
        )
