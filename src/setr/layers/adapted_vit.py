"""What adapted classes of timm share: the interface that `Encoder` runs ViTs by.

timm has ViTs of other classes than `VisionTransformer`: with a relative position bias (BEiT and its
own), with windows (SAM), and NaFlex. An adapted class takes images of any size.

Shapes: B batch, h x w patch grid, N tokens, C width, M heads.
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn


class AdaptedViT:
    """First base of an adapted class of timm; the second is timm's class.

    Its `patch_embed` returns (B, h, w, C) and pads images to whole patches. A class whose blocks
    need more than tokens and rotary angles has `block_arguments(tokens, grid)`: the further keyword
    arguments of every block for tokens (B, N, C) of an (h, w) patch grid.
    """

    grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass."""
        self.grad_checkpointing = enable


def adapt(vit: Any, kind: type[AdaptedViT]) -> None:
    """Make a timm ViT one of an adapted class: its patch embedding takes images of any size."""
    from setr._timm import timm

    vit.__class__ = kind
    embed = vit.patch_embed
    embed.flatten, embed.output_fmt = False, timm.layers.Format.NHWC
    embed.strict_img_size, embed.dynamic_img_pad = False, True
    if not hasattr(vit, "norm_pre"):
        vit.norm_pre = nn.Identity()


def attended(layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """What an attention layer makes of (B, M, N, C / M) queries, keys and values: (B, N, C).

    `mask`, (B or 1, M, N, N), is added to the scores.
    """
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=layer.attn_drop.p if layer.training else 0.0
    )
    return cast(Tensor, layer.proj_drop(layer.proj(out.transpose(1, 2).flatten(2))))


def rope_by_block(rope: Tensor | None, depth: int) -> list[Tensor | None]:
    """The rotary angles of each block: (N, 2D) are those of all, (depth, M, N, 2D) one's each."""
    if rope is None or rope.ndim == 2:
        return [rope] * depth
    return list(rope[:depth])
