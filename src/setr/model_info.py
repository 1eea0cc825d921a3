"""Everything stored with a model besides its weights, and its form in `config.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from setr.arguments.typed import check_fields, typed
from setr.bands import Bands
from setr.errors import UsageError
from setr.labels import Labels
from setr.model import SETR
from setr.protocols import Protocol
from setr.reading import typed_yaml
from setr.weight_files.licences import licence_by_name

FORMAT = "setr-1"


@dataclass(frozen=True)
class ModelInfo:
    """Everything stored with a model besides its weights.

    Args:
        labels: classes, colours and label map.
        mean: of each input channel, for images in 0 to 1.
        std: of each input channel, positive.
        protocol: single-scale test protocol, also used for prediction.
        recipe: name of the recipe that trained it.
        metrics: results printed on the model card.
        crop_size: height and width of the training crops in pixels.
        pretrained: source of the encoder's pretrained weights; None for random ones. A Hybrid may
            have two, here and in `licence` and `base_model` with `; ` between.
        command: command that reproduces the model.
        bands: bands read from files, one for each channel; None for red, green and blue.
        licence: of the pretrained weights; None if it was not recorded.
        base_model: `owner/name` on the Hub of the weights that training started from, if known.
        data: name of the data set of training and `metrics`, `owner/name` if it is on the Hub; None
            if it was not recorded.

    Raises:
        SetrError: a value of another type, a mean that is not finite, or a std or crop size that is
            not positive.
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
    licence: str | None = None
    base_model: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(map(math.isfinite, self.mean)):
            raise UsageError(f"mean {self.mean}: give finite numbers")
        if not all(0 < deviation < math.inf for deviation in self.std):
            raise UsageError(f"std {self.std}: give positive numbers")
        if self.crop_size and min(self.crop_size) < 1:
            raise UsageError(f"crop_size {self.crop_size}: give positive pixels")


_PLAIN_FIELDS = [
    f.name for f in dataclasses.fields(ModelInfo) if f.name not in ("labels", "protocol", "bands")
]


def require_own(model: Any, info: ModelInfo) -> None:
    """Refuse labels, a mean, std or bands whose number is not the model's classes or channels."""
    K, num_classes = len(info.labels.classes), getattr(model, "num_classes", None)
    if num_classes not in (None, K):
        raise UsageError(
            f"labels of {K} classes: the model has {num_classes}; give ModelInfo one name for each"
        )
    channels = getattr(getattr(model, "encoder", None), "in_chans", len(info.mean))
    given = {
        "mean": info.mean,
        "std": info.std,
        "bands": info.bands.numbers if info.bands else None,
    }
    for name, values in given.items():
        if values is not None and len(values) != channels:
            raise UsageError(
                f"{name} {values}: the model takes {channels} channels; give ModelInfo one value "
                "for each"
            )


def with_metrics(info: ModelInfo, metrics: Mapping[str, Any], data: str) -> ModelInfo:
    """With further metrics, and without the name of the data if these are of others.

    Args:
        data: name of the data set that the metrics are of, as in `ModelInfo`.
    """
    kept = info.data if data == info.data else None
    return dataclasses.replace(info, metrics={**info.metrics, **metrics}, data=kept)


def describe(model: SETR, info: ModelInfo) -> dict[str, Any]:
    """The content of `config.json`, which exported files contain too.

    Raises:
        SetrError: as `require_own`.
    """
    require_own(model, info)
    return {
        "format": FORMAT,
        "model": model.arguments,
        "labels": info.labels.to_dict(),
        "protocol": dataclasses.asdict(info.protocol),
        **(info.bands.to_dict() if info.bands else {}),
        **{name: getattr(info, name) for name in _PLAIN_FIELDS},
    }


def read_info(values: dict[str, Any], source: str) -> ModelInfo:
    """The `ModelInfo` in the values that `describe` returned, read from JSON.

    Args:
        source: its origin, for messages.

    Raises:
        SetrError: a value of the wrong type or out of range.
        KeyError: a missing value.
        TypeError: other content.
    """
    hints = get_type_hints(ModelInfo)
    return ModelInfo(
        labels=Labels.from_dict(values["labels"]),
        protocol=typed_yaml.build(Protocol, values["protocol"], source, "protocol."),
        bands=Bands.of(values),
        **{
            name: typed(hints[name], values[name], f"{source}: {name}")
            for name in _PLAIN_FIELDS
            if name in values
        },
    )


def licence_of(model: SETR, info: ModelInfo) -> str | None:
    """Licence of the weights a model started from; None for random ones, or if not recorded."""
    if info.licence or not info.pretrained:
        return info.licence
    return licence_by_name(model.arguments["encoder"], info.pretrained)


def as_tuple(value: Any) -> Any:
    """A tuple for a list, which is how JSON stores tuples; other values unchanged."""
    return tuple(value) if isinstance(value, list) else value
