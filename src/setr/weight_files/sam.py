"""The image encoder of Segment Anything (SAM): names of Meta and transformers, position vectors.

Meta's files (facebookresearch/segment-anything) and MedSAM's have the same names; those of
transformers (modeling_sam.py) differ a little. Both also hold SAM's prompt encoder and mask
decoder, which have no counterpart here; nor has the neck between encoder and decoder.
"""

from __future__ import annotations

from torch import Tensor

from setr.weight_files.naming import Rule, Tensors, Translation, rename, start_of

OFFSETS = ("attn.rel_pos_h", "attn.rel_pos_w")
"""How the names of tables of position vectors end."""


def sam(tensors: Tensors) -> Translation:
    """SAM of Meta or transformers, or its image encoder alone."""
    block = r"(?:blocks|layers)\.(\d+)\."
    rules: list[Rule] = [
        (r"pos_embed", "pos_embed"),
        (r"patch_embed\.proj(?:ection)?\.(.+)", r"patch_embed.proj.\1"),
        (block + r"(?:layer_)?norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
        (block + r"attn\.(.+)", r"blocks.\1.attn.\2"),
        (block + r"mlp\.lin([12])\.(.+)", r"blocks.\1.mlp.fc\2.\3"),
    ]
    start = start_of(tensors, r"(?:pos_embed|patch_embed\..+)")
    return Translation("sam", *rename(tensors, rules, start))


def fit_offsets(table: Tensor, own: Tensor) -> Tensor:
    """Resample a table of position vectors to the length of the model's, as in each forward pass.

    Args:
        table: (2n - 1, d).
        own: the model's.

    Returns:
        As long as the model's; `table` itself if it is, or has another width.
    """
    if table.ndim != 2 or table.shape[1:] != own.shape[1:]:
        return table
    from setr.layers.window_attention import resample_offsets  # imports timm

    return resample_offsets(table, (len(own) + 1) // 2)
