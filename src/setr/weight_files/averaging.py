"""Weight averaging: one model whose weights are the mean of several runs' weights.

Runs that start from the same pretrained weights often end in the same basin of the loss. The mean
of their weights then does about as well as an ensemble, at the inference cost of one model, and
better than each run under distribution shift (Wortsman et al., Model soups, ICML 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr.errors import UsageError
from setr.hub import from_pretrained
from setr.model import SETR
from setr.model_info import ModelInfo, licence_of
from setr.model_sources import sources_of
from setr.processes.standard_streams import tell
from setr.weight_files.licences import joined

_ALIKE = 0.5


def average(sources: Sequence[str | Path]) -> tuple[SETR, ModelInfo]:
    """A model with the mean weights and batch norm statistics of several models, in eval mode.

    Args:
        sources: two or more model directories or Hub names. The test protocol and other settings
            are those of the first. Metrics are dropped, because the mean has not been tested; the
            licences of all pretrained weights are named; a data set and weights to start from only
            if all have the same.

    Raises:
        UsageError: fewer than two models, one given twice, or models that differ in architecture
            or classes.
    """
    if len(sources) < 2:
        given = "one model" if sources else "no model"
        raise UsageError(f"{given} to average; give two or more")
    sources = sources_of(sources)
    model, info = from_pretrained(sources[0])
    state = model.state_dict()
    infos, licences = [info], [licence_of(model, info)]
    sums = {k: v.double() for k, v in state.items() if v.is_floating_point()}
    for source in sources[1:]:
        other, its_info = from_pretrained(source)
        mine, its = _architecture(model), _architecture(other)
        if differing := [k for k in sorted({*mine, *its}) if mine.get(k) != its.get(k)]:
            raise UsageError(
                f"{source}: another architecture than {sources[0]} (not the same "
                f"{', '.join(differing)}); only models of one architecture can be averaged"
            )
        shared = ("labels", "mean", "std", "bands")
        if any(getattr(its_info, key) != getattr(info, key) for key in shared):
            raise UsageError(
                f"{source}: other classes, label map, bands or normalisation than {sources[0]}; "
                "only models of one data set can be averaged"
            )
        infos.append(its_info)
        licences.append(licence_of(other, its_info))
        if parts := unlike(model, other):
            tell(
                f"setr: warning: {source}: began with another {' and '.join(parts)} than "
                f"{sources[0]}, and the mean of unlike weights computes neither; runs that share "
                "train.init_seed and pretrained weights can be averaged"
            )
        found = other.state_dict()
        for name, total in sums.items():
            total += found[name]
    with torch.no_grad():
        means = {k: (v / len(sources)).to(state[k].dtype) for k, v in sums.items()}
    model.load_state_dict({**state, **means}, assign=True)
    common: dict[str, Any] = {
        name: getattr(info, name) if len({getattr(one, name) for one in infos}) == 1 else None
        for name in ("base_model", "data")
    }
    return model.eval(), replace(info, metrics={}, licence=joined(licences), **common)


def unlike(first: SETR, other: SETR) -> list[str]:
    """The parts (`encoder`, `neck`, `decoder`) whose weights did not start from the same values.

    Random matrices are orthogonal, and training turns pretrained ones little: decoders of
    two short runs had a cosine of 0.001, those that began as one of 0.95, pretrained encoders of
    0.9999. The mean of orthogonal matrices computes neither function.
    """
    dots: dict[str, Tensor] = {}
    theirs = dict(other.named_parameters())
    for name, mine in first.named_parameters():
        if mine.ndim > 1 and not name.startswith("aux_heads."):  # which predict nothing
            pair = torch.stack([mine.detach().flatten(), theirs[name].detach().flatten()]).double()
            part = name.partition(".")[0]
            dots[part] = dots.get(part, 0) + pair @ pair.T
    cosines = {part: d[0, 1] / (d[0, 0] * d[1, 1]).sqrt() for part, d in dots.items()}
    return [part for part, cosine in cosines.items() if cosine < _ALIKE]


def _architecture(model: SETR) -> dict[str, Any]:
    """A model's arguments without those that only affect training."""
    own = model.arguments["encoder_args"] or {}
    kept = {name: value for name, value in own.items() if name != "drop_path_rate"}
    return {**model.arguments, "encoder_args": kept}
