"""The pixels of each class in the training split, and what a run makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from setr.config import Config
from setr.data.dataset import Dataset
from setr.distributed import say
from setr.doctor import check, describe_map, map_a_class
from setr.labels import Labels
from setr.processes.progress import counting
from setr.training.weighting import by_class, class_weights, described, named_weights
from setr.transforms import Augmentation, fill_colour, rare_class_odds


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


def _given_weights(config: Config, labels: Labels) -> list[float] | None:
    named = named_weights(config.train.class_weights)
    return by_class(named, labels.classes) if named else None
