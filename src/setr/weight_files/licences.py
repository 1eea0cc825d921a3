"""Licences of pretrained encoder weights: from timm's list, or as a model of ours recorded them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setr.errors import SetrError
from setr.reading.parsed import table_in
from setr.reading.remote import is_repository
from setr.weight_files.pretrained import (
    pretrained_id,
    pretrained_names,
    timm_name_of,
    weights_on_the_hub,
)

UNKNOWN = "unknown"


def offered_licence(name: str) -> str:
    """Licence of timm's weights of this name, or of those it takes by default for an encoder."""
    from setr._timm import timm

    config = timm.get_pretrained_cfg(name)
    return (config.license if config else None) or UNKNOWN


def weights_licence(encoder: str, source: str | None) -> str | None:
    """Licence of the weights that a model starts from.

    Args:
        encoder: its timm name.
        source: of the weights, as `load_encoder` takes it.

    Returns:
        For a model of this toolkit what it recorded, for weights of timm what timm says, by tag or
        name of the file or repository. For others `unknown`, with the licences of the weights that
        timm has for the encoder. None without a source.
    """
    if source is None:
        return None
    own = _recorded(source)
    if own is None:
        return licence_by_name(encoder, source)
    older = own.get("pretrained")  # of a model from before licences were recorded
    recorded = own.get("licence") or (
        older and licence_by_name(own["model"]["encoder"], str(older))
    )
    return recorded and str(recorded)


def licence_by_name(encoder: str, source: str) -> str:
    """As `weights_licence`, from the name of the weights alone, whose place may not be known."""
    name = timm_name_of(source)
    with contextlib.suppress(SetrError):
        name = name or pretrained_id(encoder, source)
    if name:
        return offered_licence(name)
    offered = sorted({offered_licence(name) for name in pretrained_names(encoder)} - {UNKNOWN})
    listed = f" (timm's weights for this encoder: {', '.join(offered)})" if offered else ""
    return UNKNOWN + listed


def _recorded(source: str) -> Mapping[str, Any] | None:
    """The config.json of a model of this toolkit; None for other sources."""
    folder = Path(source)
    if is_repository(source) and not timm_name_of(source):
        with contextlib.suppress(SetrError):
            folder = weights_on_the_hub(source).parent
    values = table_in(folder / "config.json")
    model = values.get("model")
    return values if isinstance(model, dict) and isinstance(model.get("encoder"), str) else None
