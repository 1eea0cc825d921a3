"""The options of `setr.load`, for editors, and for errors before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from setr.arguments.choices import OddSizes, Precision
from setr.bands import Range
from setr.labels import Labels
from setr.protocols import Protocol


class PredictorOptions(TypedDict, total=False):
    """Keyword arguments of `Predictor`, which explains them; `device` is one of `load` itself."""

    precision: Precision
    max_pixels: int
    protocol: str | Protocol | None
    scales: Sequence[float] | None
    flip: bool
    window: int | None
    min_confidence: float
    allow_urls: bool
    bands: tuple[int, ...] | None
    value_range: Range | None


class LoadOptions(PredictorOptions, total=False):
    """Those, and for checkpoints of other code the ones of `foreign.convert_foreign`."""

    num_heads: int | None
    taps: tuple[int, ...] | None
    aux_taps: tuple[int, ...] | None
    img_size: int | tuple[int, int] | None
    labels: Labels | None
    odd_sizes: OddSizes
    encoder: str | None
    pretrained: str | None
