"""Plain ViTs with a relative position bias in every block (BEiT), for images of any size.

Bao et al. 2022, "BEiT" (arXiv 2106.08254), and Peng et al. 2022, "BEiT v2" (arXiv 2208.06366). To
each attention score a block adds a value that it has learned for the offset between the two
patches. Its table holds the offsets of one patch grid; timm's code takes images of that grid alone.

For another grid the table is resampled bilinearly in every forward pass, as transformers does with
BEiT (modeling_beit.py, `BeitRelativePositionBias`); docs/decisions.md says why. At its own grid it
is used as it is.

Shapes: B batch, h x w patch grid, N tokens, C width, M heads. A table is
((2h-1) * (2w-1) + 3, M): offsets row by row, then class token to patch, patch to class token, and
class token to itself.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from setr._timm import timm

_beit: Any = timm.models.beit


class Places(NamedTuple):
    """The places of an image's tokens.

    Attributes:
        grid: patch grid (h, w).
        pairs: (N, N) int32, for each pair the row of `RelativeAttention.rows` that it uses.
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


class RelativeAttention(_beit.Attention):
    """timm's attention with a bias for the places it is given, and without timm's buffers."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Places | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); timm's blocks pass the places on under their argument's name."""
        B, N, _ = x.shape
        bias = self.q_bias
        if bias is not None:
            bias = torch.cat([bias, torch.zeros_like(bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None
        if shared_rel_pos_bias is not None and self.relative_position_bias_table is not None:
            mask = self.bias(shared_rel_pos_bias, q.dtype)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.attn_drop.p if self.training else 0.0
        )
        out = self.proj(out.transpose(1, 2).reshape(B, N, -1))
        return cast(Tensor, self.proj_drop(out))

    def bias(self, at: Places, dtype: torch.dtype) -> Tensor:
        """(1, M, N, N) bias of the attention scores, in the dtype of the scores."""
        rows = self.rows(at.grid)
        if not rows.requires_grad:  # gradients of many pairs are summed in float32
            rows = rows.to(dtype)
        N = at.pairs.shape[0]
        return rows.index_select(1, at.pairs.flatten()).view(1, -1, N, N).to(dtype)

    def rows(self, grid: tuple[int, int]) -> Tensor:
        """The table resampled to a grid: (M, 3 + (2h-1) * (2w-1)), the class token's rows first."""
        table = self.relative_position_bias_table.t()
        own = self.window_size
        offsets, special = table[:, :-3], table[:, -3:]
        if tuple(grid) != tuple(own):
            offsets = resample_table(offsets, own, grid)
        return torch.cat([special, offsets], dim=1)


def resample_table(offsets: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resample (M, (2h-1) * (2w-1)) values of offsets to another patch grid, bilinearly."""
    maps = offsets.reshape(1, -1, 2 * own[0] - 1, 2 * own[1] - 1)
    if maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()
    size = (2 * grid[0] - 1, 2 * grid[1] - 1)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps[0].flatten(1).to(offsets.dtype)


class RelativeViT(_beit.Beit):
    """timm's BEiT for images of any size, with the methods of timm's other ViTs that are used."""

    def norm_pre(self, tokens: Tensor) -> Tensor:
        """The tokens; BEiT has no norm before its blocks."""
        return tokens

    def _pos_embed(self, patches: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, N, C) with the class token, and absolute positions if there are."""
        B, h, w, _ = patches.shape
        tokens = torch.cat([self.cls_token.expand(B, -1, -1), patches.flatten(1, 2)], dim=1)
        if self.pos_embed is not None:
            tokens = tokens + timm.layers.resample_abs_pos_embed(
                self.pos_embed, new_size=(h, w), old_size=self.patch_embed.grid_size
            )
        return cast(Tensor, self.pos_drop(tokens))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As in timm's `VisionTransformer`, for images (B, in_chans, H, W) of any size."""
        last = len(self.blocks) - 1
        wanted = [range(last + 1)[i] for i in (range(last + 1) if indices is None else indices)]
        patches = self.patch_embed(x)
        h, w = patches.shape[1:3]
        tokens = self._pos_embed(patches)
        prefix = self.num_prefix_tokens
        at = places((h, w), has_class_token=prefix > 0, device=tokens.device)
        found = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1] if stop_early else self.blocks):
            if self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, at, use_reentrant=False)
            else:
                tokens = block(tokens, at)
            if i in wanted:
                found[i] = self.norm(tokens) if norm else tokens
        maps: list[Any] = [found[i][:, prefix:] for i in sorted(found)]
        if output_fmt == "NCHW":
            maps = [m.unflatten(1, (h, w)).permute(0, 3, 1, 2).contiguous() for m in maps]
        if return_prefix_tokens:
            maps = [(m, found[i][:, :prefix]) for m, i in zip(maps, sorted(found), strict=True)]
        return maps if intermediates_only else (self.norm(tokens), maps)


def is_relative(name: str) -> bool:
    """Whether a timm model is a ViT of this kind: BEiT or BEiT v2."""
    return bool(timm.models.is_model_in_modules(name, ["beit"]))


def make_variable(vit: Any) -> None:
    """Make one of timm's `Beit` take images of any size; parameters and names do not change.

    Its blocks no longer hold an index for each pair of tokens, nor the key's bias, which is zero.
    """
    embed = vit.patch_embed
    embed.flatten, embed.output_fmt = False, timm.layers.Format.NHWC
    embed.strict_img_size, embed.dynamic_img_pad = False, True
    vit.__class__ = RelativeViT
    for block in vit.blocks:
        block.attn.__class__ = RelativeAttention
        block.attn.relative_position_index = block.attn.k_bias = None
