"""`setr.load`: from a path, a name or a model in memory to a `Predictor`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from setr.arguments.choices import OddSizes, Precision
from setr.arguments.elsewhere_python import answers_keywords
from setr.arguments.typed import require_known
from setr.bands import Range
from setr.errors import UsageError
from setr.evaluation import checked_info
from setr.exporting.runtime import ExportedModel
from setr.labels import Labels
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.opening import open_trained
from setr.predictor import Predictor
from setr.protocols import Protocol

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PredictorOptions(TypedDict, total=False):
    """Keyword arguments of `Predictor`, which explains them; `device` is one of `load` itself."""

    precision: Precision
    max_pixels: int
    protocol: str | Protocol | None
    scales: Sequence[float] | None
    flip: bool
    short_side: int | None
    window: int | None
    min_confidence: float
    allow_urls: bool
    bands: tuple[int, ...] | None
    value_range: Range | None


class ForeignOptions(TypedDict, total=False):
    """Keyword arguments of `foreign.convert_foreign`, for checkpoints of other code."""

    num_heads: int | None
    taps: tuple[int, ...] | None
    aux_taps: tuple[int, ...] | None
    img_size: int | tuple[int, int] | None
    labels: Labels | None
    odd_sizes: OddSizes
    encoder: str | None
    pretrained: str | None


class LoadOptions(PredictorOptions, ForeignOptions, total=False):
    """Keyword arguments of `load` besides its own."""


@answers_keywords("load")
def load(
    source: str | os.PathLike | Sequence[str | os.PathLike] | SETR,
    *,
    device: str | torch.device = "auto",
    revision: str | None = None,
    info: ModelInfo | None = None,
    **options: Unpack[LoadOptions],
) -> Predictor:
    """Load a trained model.

    Args:
        source: a model directory (such as a run folder); `owner/name` or `owner/name@revision` on
            the Hub; a SETR, Segmenter, DPT, UPerNet or EoMT checkpoint (.pth) of other code; the
            folder or `owner/name` of a model of transformers; a linear head of DINOv2; the http(s)
            address of such a file, which is cached by torch; a file written by `setr export`
            (.onnx, .xml), which has a fixed precision; or a model in memory, together with `info`.
            A list of models, their names between commas or a pattern of folders (`runs/fold*`) is
            an ensemble: the mean of their probabilities.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, …
        revision: branch, tag or commit on the Hub.
        info: normalisation, classes and protocol, if `source` is a model in memory.
        options: further keyword arguments of `Predictor`, such as `precision`, `window`, `scales`
            and `flip`. For the checkpoints of other code bases also those of
            `foreign.convert_foreign`, such as `num_heads`, or `pretrained` for a linear head and
            for EoMT's differences to DINOv3.

    Returns:
        A `Predictor`; its method `predict` segments an image.

    Raises:
        SetrError: missing or broken model, or a device that is not available.
        TypeError: another keyword.
    """
    require_known("load", options, LoadOptions)
    given: dict[str, Any] = {**options}
    foreign = {key: given.pop(key) for key in ForeignOptions.__annotations__ if key in given}
    if isinstance(source, SETR):
        return Predictor(source, checked_info(info), device=device, **given, **foreign)
    if info is not None or not isinstance(source, str | os.PathLike | list | tuple):
        raise UsageError(
            f"{source if info is not None else type(source).__name__}: give the path or name of a "
            "model, which has its own info, or a SETR model with info="
        )
    model, info = open_trained(source, device=device, revision=revision, foreign=foreign)
    if not isinstance(model, ExportedModel):
        return Predictor(model, info, device=device, **given)
    if given.pop("precision", "auto") not in ("auto", model.precision):
        raise UsageError(
            f"{source}: was exported in {model.precision}; leave --precision out, or export again"
        )
    return Predictor(model, info, device="cpu", precision="fp32", **given)
