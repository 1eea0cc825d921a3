"""The low-rank matrices of LoRA, and state dicts in which they are merged into the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from setr.errors import UsageError

SCALE = 2.0
"""Factor s on the low-rank product (alpha / rank in the paper's terms)."""
_PARTS = ".parametrizations.weight."
"""In torch's names of a weight's parts: `original`, `0.a` and `0.b`."""


class LowRank(nn.Module):
    """A parametrization: W becomes W + s·B·A, with A (rank x in) and B (out x rank), at first 0.

    Both are on the device of W, in its dtype.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        a = torch.randn(rank, in_features, dtype=weight.dtype, device=weight.device)
        self.a = nn.Parameter(a * in_features**-0.5)
        self.b = nn.Parameter(weight.new_zeros(out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum."""
        return weight + SCALE * (self.b @ self.a)


def merged_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the low-rank matrices merged into the weights, under their usual names.

    A state dict without LoRA is returned unchanged, and so are matrices without their weight.
    """
    merged = {}
    for name, value in state.items():
        stem, _, part = name.partition(_PARTS)
        original, a, b = (f"{stem}{_PARTS}{end}" for end in ("original", "0.a", "0.b"))
        if not part or not {original, a, b} <= state.keys():
            merged[name] = value
        elif part == "original":
            merged[f"{stem}.weight"] = value + SCALE * (state[b] @ state[a])
    return merged


def fit_low_rank(
    given: dict[str, Tensor], own: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, with LoRA merged unless the model has it, too.

    Args:
        given: the checkpoint, under the model's names.
        own: the state dict of the model.
        source: name of the checkpoint for error messages.

    Raises:
        SetrError: the model has LoRA, and the checkpoint none or of another rank.
    """
    ours, theirs = _rank(own), _rank(given)
    if not ours:
        return merged_state(given)
    if not theirs and any(f"{n.removesuffix('.weight')}{_PARTS}original" in own for n in given):
        raise UsageError(
            f"{source}: has no LoRA layers, and the model has; load weights before add_lora"
        )
    if theirs not in (0, ours):
        raise UsageError(
            f"{source}: has LoRA of rank {theirs}, the model of rank {ours}; give add_lora the "
            f"rank {theirs}, or load into a model without LoRA, which merges it"
        )
    return given


def _rank(state: dict[str, Tensor]) -> int:
    """The rank of the low-rank matrices of a state dict; 0 without any."""
    return next((len(value) for name, value in state.items() if name.endswith(f"{_PARTS}0.a")), 0)
