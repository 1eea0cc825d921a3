"""Opens a trained model, wherever it is stored: a folder, the Hub, other code, an exported file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from setr.ensemble import Ensemble, joined
from setr.errors import UsageError
from setr.exporting.runtime import SUFFIXES, ExportedModel, open_exported
from setr.hub import from_pretrained, model_folder
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.model_sources import sources_of
from setr.reading.remote import at_revision, fetched
from setr.reading.urls import is_url
from setr.weight_files.foreign import convert_foreign
from setr.weight_files.transformers_files import is_foreign

Trained = SETR | ExportedModel | Ensemble
"""What a trained model computes with."""


def open_trained(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    device: str | torch.device = "auto",
    revision: str | None = None,
    foreign: dict[str, Any] | None = None,
) -> tuple[Trained, ModelInfo]:
    """The network of a trained model, or of several, and what is stored with it.

    Args:
        source: as `setr.load` takes it.
        device: where an exported file runs; other models are returned on the CPU.
        revision: branch, tag or commit on the Hub.
        foreign: keywords of `foreign.convert_foreign`.

    Raises:
        SetrError: missing or broken model, a device that is not available, or `foreign` for a model
            that is not of other code.
    """
    sources = sources_of(source)
    if len(sources) > 1:
        opened = [_open(one, device, revision, foreign) for one in sources]
        return joined(sources, opened)
    return _open(sources[0], device, revision, foreign)


def _open(
    source: str, device: str | torch.device, revision: str | None, foreign: dict[str, Any] | None
) -> tuple[SETR | ExportedModel, ModelInfo]:
    source = at_revision(source, revision)
    if is_url(source):
        source = str(fetched(source))
    if Path(source).suffix == ".pt2":
        raise UsageError(
            f"{source}: a torch.export file is for programs without setr; load the model it was "
            "made from, or an .onnx or .xml export"
        )
    is_exported = Path(source).suffix in SUFFIXES
    if not is_exported and not Path(source).is_file():
        source = str(model_folder(source))
    if not is_exported and (Path(source).is_file() or is_foreign(Path(source))):
        model, info, _ = convert_foreign(source, **(foreign or {}))
        return model, info
    if foreign:
        raise UsageError(
            f"{next(iter(foreign))}: is for checkpoints of other code, and {source} is none; leave "
            "it out"
        )
    return open_exported(Path(source), str(device)) if is_exported else from_pretrained(source)
