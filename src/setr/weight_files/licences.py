"""Licence and repository of pretrained weights: of timm's, or as a model of ours recorded them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from setr.errors import SetrError
from setr.reading.parsed import table_in
from setr.reading.remote import is_repository, repository_name
from setr.weight_files.naming import part_of
from setr.weight_files.pretrained import (
    pretrained_id,
    pretrained_names,
    timm_name_of,
    timm_repository,
    weights_on_the_hub,
)

_ON_THE_HUB = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)/(?:resolve|blob)/")
"""The address of a file there, after which its repository is read."""
UNKNOWN = "unknown"
UNTRAINED = "none, they began as random weights"


def joined(origins: Iterable[str | None]) -> str | None:
    """What is known of several weights, each once, with `; ` between; None for nothing."""
    return "; ".join(dict.fromkeys(filter(None, origins))) or None


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
        For a model of this toolkit what it recorded, or `UNTRAINED` if it was trained from random
        weights; for weights of timm what timm says, by tag or name of the file or repository. For
        others `unknown`, with the licences of the weights that timm has for the encoder. None
        without a source.
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
    if recorded:
        return str(recorded)
    trained = own.get("data") and not older and not own["model"].get("resnet")
    return UNTRAINED if trained else None


def licence_by_name(encoder: str, source: str) -> str:
    """As `weights_licence`, from the name of the weights alone, whose place may not be known."""
    if name := _timm_name(encoder, source):
        return offered_licence(name)
    offered = sorted({offered_licence(name) for name in pretrained_names(encoder)} - {UNKNOWN})
    listed = f" (timm's weights for this encoder: {', '.join(offered)})" if offered else ""
    return UNKNOWN + listed


def weights_repository(encoder: str, source: str | None) -> str | None:
    """The model on the Hub that weights are from, `owner/name`; None if that is not known.

    Args:
        encoder: its timm name.
        source: of the weights, as `load_encoder` takes it; a local model of this toolkit tells what
            it started from.
    """
    own = None if source is None or is_repository(source) else _recorded(source)
    if own is None:
        return repository_by_name(encoder, source)
    recorded = own.get("base_model")
    return recorded and str(recorded)


def repository_by_name(encoder: str, source: str | None) -> str | None:
    """As `weights_repository`, from the name of the weights alone."""
    if source is None:
        return None
    if is_repository(source):
        return repository_name(source)
    if found := _ON_THE_HUB.match(source):
        return found[1]
    name = _timm_name(encoder, source)
    return name and timm_repository(name)


def _timm_name(encoder: str, source: str) -> str | None:
    """The name in timm of weights, by a tag or by the name of their file; None for others."""
    name = timm_name_of(source)
    with contextlib.suppress(SetrError):
        name = name or pretrained_id(encoder, source)
    return name


def _recorded(source: str) -> Mapping[str, Any] | None:
    """The config.json of a model of this toolkit; None for other sources."""
    folder = Path(source)
    if is_repository(source) and not timm_name_of(source):
        with contextlib.suppress(SetrError):
            folder = weights_on_the_hub(source).parent
    values = table_in(folder / "config.json")
    return values if isinstance(part_of(values, "model").get("encoder"), str) else None
