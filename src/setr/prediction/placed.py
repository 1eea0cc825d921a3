"""A model where it computes: on a device, and in a precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from setr import distributed
from setr.arguments.choices import Precision
from setr.ensemble import Ensemble
from setr.errors import UsageError
from setr.evaluation import computed_in
from setr.exporting.runtime import ExportedModel
from setr.kernels.recorded import recorded
from setr.kernels.windows import Model
from setr.layers.precision import autocast
from setr.model import SETR
from setr.opening import Trained
from setr.processes.forked import require_threads

Self = TypeVar("Self", bound="PlacedModel")


class PlacedModel:
    """A network, or an exported file, on a device.

    Args:
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, …
        precision: of its forward pass, also after a move to another device.

    Attributes:
        device: where it is.
        dtype: of autocast there; None without.
        passes: the model as it is called; on a GPU, repeated shapes are replayed as CUDA graphs.

    Raises:
        SetrError: no such device, or one that lacks the precision.
    """

    def __init__(self, model: Trained, device: str | torch.device, precision: Precision) -> None:
        self.precision: Precision = precision
        self._place(model, device)

    def _place(self, model: Trained, device: str | torch.device) -> None:
        place = distributed.device(device)
        self.dtype = computed_in(model, self.precision, place)
        self.device, self.model = place, model.to(place)

    def to(self: Self, device: str | torch.device) -> Self:
        """Move the model to another device, not while another thread predicts; returns `self`.

        Raises:
            SetrError: no such device, one that lacks the precision, or an exported file.
        """
        if isinstance(self.model, ExportedModel):
            raise UsageError(
                f"{self.model.name}: an exported file stays on its device; give device= to "
                "setr.load"
            )
        self._place(self.model, device)
        return self

    @property
    def model(self) -> Trained:
        """The model; assign another one to replace it."""
        return self._model

    @model.setter
    def model(self, model: Trained) -> None:
        self._model = model
        self.passes: Model = recorded(model)

    @property
    def network(self) -> SETR:
        """The model as a PyTorch network.

        Raises:
            SetrError: the model is an exported file, which only computes scores, or an ensemble.
        """
        if isinstance(self.model, Ensemble):
            raise UsageError(
                "several models: only predictions are averaged; give one of them, or one model "
                "that `setr average` makes of them"
            )
        if isinstance(self.model, ExportedModel):
            raise UsageError(
                f"{self.model.name}: an exported file only computes scores; give the model it was "
                "made from"
            )
        return self.model

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Context of inference mode and autocast in the model's precision.

        Raises:
            SetrError: in a forked process that would wait for ever.
        """
        if self.device.type == "cpu":
            require_threads(torch.get_num_threads())
        with torch.inference_mode(), autocast(self.device, self.dtype):
            yield
