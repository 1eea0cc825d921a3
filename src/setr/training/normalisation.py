"""Mean and standard deviation of the input channels, measured on the training split.

RGB images use those of ImageNet, with which encoders were trained; other bands are measured.
"""

from __future__ import annotations

import numpy as np

from setr.config import Config, ModelConfig
from setr.data.dataset import Dataset
from setr.data.sampling import evenly_spaced
from setr.distributed import on_first, say
from setr.errors import SetrError, UsageError

SAMPLED = 200
"""Maximum number of images to measure, spread evenly over the split."""
SIDE = 1024
"""Maximum side in pixels of the centre crop that is measured."""


def with_normalisation(config: Config, dataset: Dataset) -> Config:
    """The settings with a mean and standard deviation for each channel of a data set's images.

    For three channels they stay as they are; otherwise they are measured unless given.

    Raises:
        SetrError: given for another number of channels, or no image can be read.
    """
    missing = _missing(config.model, dataset.channels, dataset.name)
    if not missing:
        return config
    mean, std = on_first(lambda: measured(dataset))
    found = {"mean": mean, "std": std}
    for name in missing:
        say(f"model.{name}, measured: {' '.join(f'{value:g}' for value in found[name])}")
    return config.replace({f"model.{name}": found[name] for name in missing})


def with_channels(config: Config, channels: int) -> Config:
    """The settings with any mean and standard deviation for this number of channels."""
    values = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    missing = _missing(config.model, channels, "the data")
    return config.replace({f"model.{name}": values[name] for name in missing})


def _missing(model: ModelConfig, channels: int, data: str) -> list[str]:
    """Which of `mean` and `std` must be set for this number of channels."""
    found = []
    for name in ("mean", "std"):
        values = getattr(model, name)
        if len(values) == channels:
            continue
        if values != getattr(ModelConfig, name):
            raise UsageError(
                f"model.{name} {values}: the images of {data} have {channels} channels; give one "
                "value for each, or leave it out"
            )
        found.append(name)
    return found


def measured(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels from 0 to 1, to four decimals.

    Raises:
        SetrError: none of the sampled images can be read.
    """
    sums, pixels, problem = np.zeros((2, dataset.channels)), 0, None
    for index in evenly_spaced(len(dataset), SAMPLED):
        try:
            image = dataset.pixels(index)
            rows, columns = (
                slice(max(0, (side - SIDE) // 2), (side + SIDE) // 2) for side in image.shape[:2]
            )
            values = image[rows, columns].reshape(-1, dataset.channels) / 255
        except SetrError as error:
            problem = problem or error  # the data check runs later and lists all of them
            continue
        sums += values.sum(axis=0), (values**2).sum(axis=0)
        pixels += len(values)
    if not pixels:
        raise problem or SetrError(f"split '{dataset.split}' of {dataset.name} has no images")
    mean = sums[0] / pixels
    std = np.sqrt(np.maximum(sums[1] / pixels - mean**2, 1e-4))  # a channel may be constant
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
