"""Several models of one data set whose probabilities are averaged, such as those of its folds.

`setr.load("runs/fold0,runs/fold1")` opens one. The average is that of the views of a multi-scale
test (`inference.py`): every member is a further view, so its patch size, decoder and normalisation
are its own, and nothing but blocks of rows is added to the memory of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from setr.errors import UsageError
from setr.model import SETR
from setr.model_info import ModelInfo, licence_of


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged; made by `joined`.

    Args:
        networks: two or more, with the same classes and channels.
        infos: what each was stored with; images come normalised as the first one's.

    Attributes:
        networks: as they were given.
        members: modules whose `coarse` takes these images, as `inference.py` calls them.
        num_classes: number of classes K.
    """

    def __init__(self, networks: Sequence[SETR], infos: Sequence[ModelInfo]) -> None:
        super().__init__()
        self.networks = list(networks)
        self.members = nn.ModuleList(
            network
            if (info.mean, info.std) == (infos[0].mean, infos[0].std)
            else _Renormalised(network, infos[0], info)
            for network, info in zip(networks, infos, strict=True)
        )
        self.num_classes = networks[0].num_classes


class _Renormalised(nn.Module):
    """A network for images that are normalised as another one's."""

    factor: Tensor
    offset: Tensor

    def __init__(self, network: SETR, given: ModelInfo, own: ModelInfo) -> None:
        super().__init__()
        self.network = network
        mean, std, own_mean, own_std = (
            torch.tensor(values)[:, None, None]
            for values in (given.mean, given.std, own.mean, own.std)
        )
        self.register_buffer("factor", std / own_std, persistent=False)
        self.register_buffer("offset", (mean - own_mean) / own_std, persistent=False)

    def coarse(self, images: Tensor) -> Any:
        """As `SETR.coarse`."""
        return self.network.coarse(images * self.factor + self.offset)


def joined(
    sources: Sequence[str], opened: Sequence[tuple[Any, ModelInfo]]
) -> tuple[Ensemble, ModelInfo]:
    """An ensemble of opened models; protocol, crop size and recipe are those of the first.

    Raises:
        SetrError: an exported file, or models that differ in classes or bands.
    """
    (_, first), networks = opened[0], []
    for source, (model, info) in zip(sources, opened, strict=True):
        if not isinstance(model, SETR):
            raise UsageError(
                f"{source}: an exported file cannot be one of several models; give the model it "
                "was made from"
            )
        if _seen(info) != _seen(first):
            raise UsageError(
                f"{source}: other classes or bands than {sources[0]}; only models of one data set "
                "can be averaged"
            )
        networks.append(model)
    infos = [info for _, info in opened]
    licences = {licence_of(model, info) for model, info in zip(networks, infos, strict=True)}
    licence = "; ".join(sorted(filter(None, licences))) or None
    return Ensemble(networks, infos).eval(), replace(first, metrics={}, licence=licence)


def _seen(info: ModelInfo) -> tuple[Any, ...]:
    """What members must share: classes, bands and the number of channels."""
    return info.labels.classes, info.bands, len(info.mean)
