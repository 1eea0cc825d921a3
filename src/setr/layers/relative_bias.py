"""Relative position biases for images of any size: timm's BEiT, and its `vit_relpos_*`.

To each attention score a block adds a value for the offset between the two patches. timm's code
takes images of one patch grid; here the values are made for the grid of the image.

- BEiT and BEiT v2 (Bao et al. 2022, arXiv 2106.08254; Peng et al. 2022, arXiv 2208.06366): a table
  that holds the offsets of one grid. For another grid it is resampled bilinearly in every forward
  pass, as transformers does with BEiT (modeling_beit.py, `BeitRelativePositionBias`);
  docs/decisions.md says why. At its own grid it is used as it is.
- timm's own ViTs: a small MLP of the offset's signed logarithm (Liu et al. 2022, "Swin Transformer
  V2", arXiv 2111.09883, section 3.3), which needs no resampling, or a table. Each block has one, or
  all share one.

Shapes: B batch, h x w patch grid, N tokens, C width, M heads. BEiT's table is
((2h-1) * (2w-1) + 3, M): offsets row by row, then class token to patch, patch to class token, and
class token to itself. Here such values are called rows, (M, 3 + (2h-1) * (2w-1)), with the class
token's three first.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr._timm import timm
from setr.layers.adapted_vit import AdaptedViT, adapt, attended
from setr.layers.positions import resize_maps

_beit: Any = timm.models.beit
_relpos: Any = timm.models.vision_transformer_relpos
_layers: Any = timm.layers.pos_embed_rel


class Places(NamedTuple):
    """The places of an image's tokens.

    Attributes:
        grid: patch grid (h, w).
        pairs: (N, N) int32, for each pair the row that it uses.
    """

    grid: tuple[int, int]
    pairs: Tensor


def places(grid: tuple[int, int], *, has_class_token: bool, device: torch.device) -> Places:
    """Places of the tokens of an (h, w) grid, made on a device without copies from the host."""
    h, w = grid
    y, x = (torch.arange(n, dtype=torch.int32, device=device) for n in grid)
    down = (y[:, None] - y + (h - 1)) * (2 * w - 1) + 3
    across = x[:, None] - x + (w - 1)
    index = (down[:, None, :, None] + across[None, :, None, :]).reshape(h * w, h * w)
    if has_class_token:
        index = F.pad(index, (0, 0, 1, 0))  # row 0: class token to patch
        first = torch.arange(h * w + 1, dtype=torch.int32, device=device) == 0
        index = torch.cat([(1 + first.int())[:, None], index], dim=1)
    return Places(grid, index)


def bias(rows: Tensor, at: Places, dtype: torch.dtype) -> Tensor:
    """(1, M, N, N) bias of the attention scores, in the dtype of the scores."""
    if not rows.requires_grad:  # gradients of many pairs are summed in float32
        rows = rows.to(dtype)
    N = at.pairs.shape[0]
    return rows.index_select(1, at.pairs.flatten()).view(1, -1, N, N).to(dtype)


def resample_table(offsets: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resample (M, (2h-1) * (2w-1)) values of offsets to another patch grid, bilinearly."""
    if tuple(grid) == tuple(own):
        return offsets
    maps = offsets.reshape(1, -1, 2 * own[0] - 1, 2 * own[1] - 1)
    return resize_maps(maps, (2 * grid[0] - 1, 2 * grid[1] - 1))[0].flatten(1)


def _scores_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype in which attention scores of these tokens are computed."""
    kind = tokens.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # meta has no autocast
        return tokens.dtype
    return torch.get_autocast_dtype(kind)


# --- BEiT -----------------------------------------------------------------------------------------


class RelativeAttention(_beit.Attention):
    """timm's attention with a bias for the places it is given, and without timm's buffers."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Places | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); timm's blocks pass the places on under their argument's name."""
        B, N, _ = x.shape
        qkv_bias = self.q_bias
        if qkv_bias is not None:
            qkv_bias = torch.cat([qkv_bias, torch.zeros_like(qkv_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None
        if shared_rel_pos_bias is not None and self.relative_position_bias_table is not None:
            mask = bias(self.rows(shared_rel_pos_bias.grid), shared_rel_pos_bias, q.dtype)
        return attended(self, q, k, v, mask)

    def rows(self, grid: tuple[int, int]) -> Tensor:
        """The table resampled to a grid: (M, 3 + (2h-1) * (2w-1))."""
        table = self.relative_position_bias_table.t()
        offsets = resample_table(table[:, :-3], self.window_size, grid)
        return torch.cat([table[:, -3:], offsets], dim=1)


class RelativeViT(AdaptedViT, _beit.Beit):
    """timm's BEiT for images of any size."""

    def block_arguments(self, tokens: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        """The places of the tokens; each block has a table."""
        at = places(grid, has_class_token=self.num_prefix_tokens > 0, device=tokens.device)
        return {"shared_rel_pos_bias": at}


# --- timm's own -----------------------------------------------------------------------------------


class _Table(_layers.RelPosBias):
    """timm's table, without its index of pairs."""

    def rows(self, grid: tuple[int, int]) -> Tensor:
        """The table resampled to a grid: (M, 3 + (2h-1) * (2w-1))."""
        table = self.relative_position_bias_table.t()
        special = 3 * self.prefix_tokens
        offsets = table[:, : table.shape[1] - special]
        rows = resample_table(offsets, self.window_size, grid)
        first = table[:, -3:] if special else table.new_zeros(table.shape[0], 3)
        return torch.cat([first, rows], dim=1)


class _OffsetMlp(_layers.RelPosMlp):
    """timm's MLP of an offset, without its buffers for one grid."""

    def rows(self, grid: tuple[int, int]) -> Tensor:
        """Its values for all offsets in a grid: (M, 3 + (2h-1) * (2w-1)); the class token has 0."""
        weight = self.mlp.fc1.weight
        down, across = (
            torch.arange(1 - n, n, device=weight.device, dtype=torch.float32) for n in grid
        )
        offsets = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)
        if self.mode == "swin":  # -8 to 8 in the grid that the weights are for
            widest = [max(1, n - 1) for n in self.window_size]
            offsets = torch.stack([offsets[:, i] / widest[i] * 8 for i in (0, 1)], dim=1)
            logarithm = torch.log2(1 + offsets.abs()) / 3
        else:
            logarithm = torch.log(1 + offsets.abs())
        rows = self.bias_act(self.mlp((offsets.sign() * logarithm).to(weight.dtype)).t())
        return F.pad(rows if self.bias_gain is None else self.bias_gain * rows, (3, 0))


class _BiasedAttention(_relpos.RelPosAttention):
    """timm's attention with a bias, or with the places that its own is for."""

    def forward(self, x: Tensor, shared_rel_pos: Places | Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); timm's blocks pass the second argument on by its name."""
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        mask = shared_rel_pos
        if isinstance(mask, Places):
            mask = bias(self.rel_pos.rows(mask.grid), mask, q.dtype)
        return attended(self, q, k, v, mask)


class BiasedViT(AdaptedViT, _relpos.VisionTransformerRelPos):
    """timm's ViT with relative position biases for images of any size."""

    def block_arguments(self, tokens: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        """The bias that all blocks share, or the places of the tokens."""
        at = places(grid, has_class_token=self.num_prefix_tokens > 0, device=tokens.device)
        shared: Any = at
        if self.shared_rel_pos is not None:
            shared = bias(self.shared_rel_pos.rows(grid), at, _scores_dtype(tokens))
        return {"shared_rel_pos": shared}


def make_variable(vit: Any) -> None:
    """Make one of timm's `Beit` or `VisionTransformerRelPos` take images of any size.

    Parameters and names do not change. The blocks no longer hold an index for each pair of tokens,
    nor BEiT's bias of the key, which is zero.
    """
    if isinstance(vit, _beit.Beit):
        adapt(vit, RelativeViT)
        for block in vit.blocks:
            block.attn.__class__ = RelativeAttention
            block.attn.relative_position_index = block.attn.k_bias = None
        return
    adapt(vit, BiasedViT)
    vit.pos_embed, vit.pos_drop = None, nn.Identity()
    for block in vit.blocks:
        block.attn.__class__ = _BiasedAttention
    for module in vit.modules():
        if isinstance(module, _layers.RelPosBias):
            module.__class__ = _Table
            module.relative_position_index = None
        elif isinstance(module, _layers.RelPosMlp):
            module.__class__ = _OffsetMlp
            module.relative_position_index = module.rel_coords_log = None
