"""Low-rank adaptation (LoRA, Hu et al. 2021) of attention layers, for fine-tuning on small GPUs.

The weight W of every attention projection of the encoder becomes W + s·B·A with W frozen and A
(rank x in) and B (out x rank) trained. B starts at zero, so outputs do not change at first. Saved
models contain the sum and do not need this module.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from setr.encoder import Encoder
from setr.errors import UsageError
from setr.layers.low_rank import LowRank
from setr.model import SETR

ATTENTION_LAYERS = ("qkv", "q_proj", "k_proj", "v_proj", "proj")


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
        raise UsageError(f"lora_rank {rank}: {model.arguments['encoder']} has no attention layers")
    if not 1 <= rank <= encoder.channels:
        raise UsageError(f"lora_rank {rank}: give 1 to the encoder's width {encoder.channels}")
    layers = [
        layer
        for block in encoder.stages()
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in ATTENTION_LAYERS
    ]
    if not layers:
        raise UsageError(
            f"lora_rank {rank}: {model.arguments['encoder']} has none of the layers "
            f"{', '.join(ATTENTION_LAYERS)}; use another encoder, or model.freeze"
        )
    if any(parametrize.is_parametrized(layer) for layer in layers):
        raise UsageError(f"lora_rank {rank}: the model already has LoRA; create a new model")
    added = [LowRank(layer.weight, rank) for layer in layers]
    for layer, low_rank in zip(layers, added, strict=True):
        parametrize.register_parametrization(layer, "weight", low_rank)
    encoder.train_only(list[nn.Module](added))
