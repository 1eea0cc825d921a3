"""Averages of models: one model whose weights are the mean of several runs' weights.

Runs that start from the same pretrained weights often end in one basin, where the mean of their
weights does as well as the mean of their answers, at the cost of a single model, and better than
each on data unlike the training set (Wortsman et al., Model soups, ICML 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from setr.errors import USAGE, SetrError
from setr.hub import from_pretrained
from setr.model import SETR
from setr.model_info import ModelInfo


def average(sources: Sequence[str | Path]) -> tuple[SETR, ModelInfo]:
    """The mean of the weights and running statistics of several models, in eval mode.

    Args:
        sources: two or more model directories or Hub names. The first one's test protocol and
            settings stay; figures do not, because the mean has not been tested.

    Raises:
        SetrError: fewer than two, or models of other architecture or classes.
    """
    if len(sources) < 2:
        raise SetrError(f"{len(sources)} model to average; give two or more", code=USAGE)
    model, info = from_pretrained(sources[0])
    state = model.state_dict()
    sums = {k: v.double() for k, v in state.items() if v.is_floating_point()}
    for source in sources[1:]:
        other, its_info = from_pretrained(source)
        mine, its = _function(model), _function(other)
        if differing := [k for k in sorted({*mine, *its}) if mine.get(k) != its.get(k)]:
            raise SetrError(
                f"{source}: another architecture than {sources[0]} (not the same "
                f"{', '.join(differing)}); only equal ones average"
            )
        facts = ("labels", "mean", "std", "bands")
        if any(getattr(its_info, f) != getattr(info, f) for f in facts):
            raise SetrError(
                f"{source}: other classes, label map or normalisation than {sources[0]}; "
                "only models of one data set average"
            )
        found = other.state_dict()
        for name, total in sums.items():
            total += found[name]
    with torch.no_grad():
        means = {k: (v / len(sources)).to(state[k].dtype) for k, v in sums.items()}
    model.load_state_dict({**state, **means}, assign=True)
    return model.eval(), replace(info, metrics={})


def _function(model: SETR) -> dict[str, Any]:
    """What makes a model's function: its arguments without what only training knows."""
    own = model.arguments["encoder_args"] or {}
    kept = {name: value for name, value in own.items() if name != "drop_path_rate"}
    return {**model.arguments, "encoder_args": kept}
