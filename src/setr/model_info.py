"""What belongs to a model besides its weights, and its form in `config.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from setr.bands import Bands
from setr.errors import USAGE, SetrError
from setr.labels import Labels
from setr.model import SETR
from setr.protocols import Protocol

FORMAT = "setr-1"


@dataclass(frozen=True)
class ModelInfo:
    """What belongs to a model besides its weights.

    Args:
        labels: classes, colours and label map.
        mean: of the input channels, images in 0 to 1; as many as the model has channels.
        std: of the input channels.
        protocol: how the model is tested single-scale; prediction uses it too.
        recipe: name of the recipe that trained it.
        metrics: figures printed on the model card.
        crop_size: height and width of the crops it was trained on, in pixels.
        pretrained: where the encoder's weights came from; None for random weights.
        command: what reproduces the model.
        bands: what it reads of a file, one for each channel; None for red, green and blue.
    """

    labels: Labels
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    protocol: Protocol = field(default_factory=Protocol)
    recipe: str = "custom"
    metrics: dict[str, Any] = field(default_factory=dict)
    crop_size: tuple[int, int] | None = None
    pretrained: str | None = None
    command: str | None = None
    bands: Bands | None = None


_PLAIN_FIELDS = ("mean", "std", "recipe", "metrics", "crop_size", "pretrained", "command")


def require_channels(model: Any, info: ModelInfo) -> None:
    """Refuse a mean, deviation or bands of other channels than the model's."""
    channels = getattr(getattr(model, "encoder", None), "in_chans", len(info.mean))
    given = {
        "mean": info.mean,
        "std": info.std,
        "bands": info.bands.numbers if info.bands else None,
    }
    for name, values in given.items():
        if values is not None and len(values) != channels:
            raise SetrError(
                f"{name} {values}: the model takes {channels} channels; give ModelInfo one value "
                "for each",
                code=USAGE,
            )


def describe(model: SETR, info: ModelInfo) -> dict[str, Any]:
    """What `config.json` holds, and every exported file too.

    Raises:
        SetrError: a normalisation of other channels than the model's.
    """
    require_channels(model, info)
    return {
        "format": FORMAT,
        "model": model.arguments,
        "labels": info.labels.to_dict(),
        "protocol": dataclasses.asdict(info.protocol),
        **(info.bands.to_dict() if info.bands else {}),
        **{name: getattr(info, name) for name in _PLAIN_FIELDS},
    }


def read_info(values: dict[str, Any]) -> ModelInfo:
    """The `ModelInfo` in what `describe` gave; KeyError or TypeError where it is something else."""
    return ModelInfo(
        labels=Labels.from_dict(values["labels"]),
        protocol=Protocol(**{k: as_tuple(v) for k, v in values["protocol"].items()}),
        bands=Bands.of(values),
        **{name: _plain(name, values[name]) for name in _PLAIN_FIELDS if name in values},
    )


def _plain(name: str, value: Any) -> Any:
    if value is None and name in ("mean", "std", "recipe", "metrics"):
        raise TypeError(f"{name} is null")
    return as_tuple(value)


def as_tuple(value: Any) -> Any:
    """A list of JSON as the tuple it was."""
    return tuple(value) if isinstance(value, list) else value
