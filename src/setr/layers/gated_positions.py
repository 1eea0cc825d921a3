"""ConViT (d'Ascoli et al. 2021, arXiv 2103.10697) at any size, without storing scores.

In its first blocks a head mixes two attentions by a learned gate: of content, a softmax of products
of queries and keys, and of position, a softmax of a·dx + b·dy + c·(dx² + dy²) for the offset of the
key. The second is a product of one softmax along each axis, so it is two small matrix products with
the values, and the first runs in kernels without stored scores. timm adds both as matrices of all
pairs of patches, for square grids.

The class token joins behind these blocks. Here it passes by them, so that all blocks have one.

Shapes: B batch, h x w patch grid, N tokens, C width, M heads, d = C / M.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from setr._timm import timm
from setr.layers.adapted_vit import AdaptedViT, adapt, attended

_convit: Any = timm.models.convit


class GatedAttention(_convit.GPSA):
    """timm's gated attention for a grid of any shape; dropout applies to the content's part."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, C) -> (B, h*w, C)."""
        B, N, C = x.shape
        heads = (self.num_heads, C // self.num_heads)
        q, k = self.qk(x).view(B, N, 2, *heads).permute(2, 0, 3, 1, 4)
        v = self.v(x).view(B, N, *heads).transpose(1, 2)
        drop = self.attn_drop.p if self.training else 0.0
        content = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
        gate = torch.sigmoid(self.gating_param).view(1, -1, 1, 1)
        mixed = (1 - gate) * content + gate * self._by_position(v, grid)
        out = mixed.transpose(1, 2).reshape(B, N, C)
        return cast(Tensor, self.proj_drop(self.proj(out)))

    def _by_position(self, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """The values (B, M, h*w, d), each the mean of all by the weights of their offsets."""
        weight, bias = self.pos_proj.weight, self.pos_proj.bias
        wide = torch.promote_types(weight.dtype, torch.float32)
        across, down, both = weight.to(wide).unbind(1)  # (M,) each
        columns = _weights(across, both, grid[1])
        rows = _weights(down, both, grid[0], bias)
        maps = v.unflatten(2, grid)
        maps = torch.einsum("mxk,bmykd->bmyxd", columns.to(v.dtype), maps)
        return torch.einsum("myk,bmkxd->bmyxd", rows.to(v.dtype), maps).flatten(2, 3)


def _weights(slope: Tensor, curve: Tensor, length: int, bias: Tensor | None = None) -> Tensor:
    """The softmax of slope · offset + curve · offset²: (M,) each -> (M, length, length keys).

    A bias does not change it, but gets a gradient, 0, which data-parallel training waits for.
    """
    place = torch.arange(length, device=slope.device, dtype=slope.dtype)
    offset = place - place[:, None]
    scores = slope[:, None, None] * offset + curve[:, None, None] * offset**2
    return (scores if bias is None else scores + bias[:, None, None]).softmax(dim=-1)


class PlainAttention(_convit.MHSA):
    """timm's attention of the last blocks, in torch's kernels."""

    fused_attn = True  # so its weights can be shown

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return attended(self, q, k, v)


class GatedBlock(_convit.Block):
    """timm's block; one with gated attention leaves the class token as it is."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if not self.use_gpsa:
            return cast(Tensor, super().forward(x))
        prefix = x.shape[1] - grid[0] * grid[1]
        patches = x[:, prefix:]
        patches = patches + self.drop_path(self.attn(self.norm1(patches), grid))
        patches = patches + self.drop_path(self.mlp(self.norm2(patches)))
        return torch.cat([x[:, :prefix], patches], dim=1) if prefix else patches


class GatedViT(AdaptedViT, _convit.ConVit):
    """timm's ConViT for images of any size."""

    no_embed_class = True

    def block_arguments(self, tokens: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        """The patch grid."""
        return {"grid": grid}


def make_gated(vit: Any) -> None:
    """Make one of timm's `ConVit` usable as an encoder; parameters and names do not change."""
    adapt(vit, GatedViT)
    for block in vit.blocks:
        block.__class__ = GatedBlock
        block.attn.__class__ = GatedAttention if block.use_gpsa else PlainAttention
        if block.use_gpsa:
            block.attn.rel_indices = None  # timm's, for one square grid
