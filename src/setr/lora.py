"""Low-rank adaptation (LoRA, Hu et al. 2021) of attention layers, for fine-tuning on small GPUs.

The weight W of every attention projection of the encoder becomes W + s·B·A with W frozen and A
(rank x in) and B (out x rank) trained. B starts at zero, so outputs do not change at first. Saved
models contain the sum and do not need this module.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from setr.encoder import Encoder
from setr.errors import USAGE, SetrError
from setr.model import SETR

SCALE = 2.0
"""Factor s on the low-rank product (alpha / rank in the paper's terms)."""

ATTENTION_LAYERS = ("qkv", "q_proj", "k_proj", "v_proj", "proj")


class _LowRank(nn.Module):
    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.a = nn.Parameter(torch.randn(rank, in_features) * in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * (self.b @ self.a)


def add_lora(model: SETR, rank: int) -> None:
    """Freeze the encoder and add trainable low-rank matrices to its attention layers.

    Args:
        model: its encoder must be a transformer.
        rank: of the matrices, 1 to the encoder's width.

    Raises:
        SetrError: an encoder without attention layers or with LoRA already, or a rank out of range.
    """
    encoder = model.encoder
    if not isinstance(encoder, Encoder):
        raise SetrError(
            f"lora_rank {rank}: {model.arguments['encoder']} has no attention layers", code=USAGE
        )
    if not 1 <= rank <= encoder.channels:
        raise SetrError(
            f"lora_rank {rank}: give 1 to the encoder's width {encoder.channels}", code=USAGE
        )
    layers = [
        layer
        for block in encoder.stages()
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in ATTENTION_LAYERS
    ]
    if not layers:
        raise SetrError(
            f"lora_rank {rank}: {model.arguments['encoder']} has none of the layers "
            f"{', '.join(ATTENTION_LAYERS)}; use another encoder, or model.freeze",
            code=USAGE,
        )
    if any(parametrize.is_parametrized(layer) for layer in layers):
        raise SetrError(
            f"lora_rank {rank}: the model already has LoRA; create a new model", code=USAGE
        )
    added = [_LowRank(layer.weight, rank) for layer in layers]
    for layer, low_rank in zip(layers, added, strict=True):
        parametrize.register_parametrization(layer, "weight", low_rank)
    encoder.train_only(list[nn.Module](added))


def merged_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the low-rank matrices merged into the weights, under their usual names.

    A state dict without LoRA is returned unchanged.
    """
    merged = {}
    for name, value in state.items():
        if found := re.fullmatch(r"(.+)\.parametrizations\.weight\.(original|0\.[ab])", name):
            stem = f"{found[1]}.parametrizations.weight"
            if found[2] == "original":
                product = state[f"{stem}.0.b"] @ state[f"{stem}.0.a"]
                merged[f"{found[1]}.weight"] = value + SCALE * product
        else:
            merged[name] = value
    return merged
