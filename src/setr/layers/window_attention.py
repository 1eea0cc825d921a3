"""Plain ViTs with window attention and decomposed relative positions, for images of any size.

ViTDet (Li et al. 2022, arXiv 2203.16527), the image encoder of Segment Anything (Kirillov et al.
2023, arXiv 2304.02643): most blocks attend inside windows of 14x14 patches, four evenly spaced
ones globally. To a score, a block adds the query's product with a vector learned for the offset of
rows and one for the offset of columns (MViTv2, arXiv 2112.01526). Here both are further channels of
queries and keys, so that no bias is stored for each pair of patches (docs/decisions.md).

On other grids than their own, the vectors are resampled linearly in every forward pass, as in the
authors' code.

Shapes: B batch, h x w patch grid, N tokens of a window, C width, M heads, d = C / M. A table is
(2n - 1, d): offsets -(n - 1) to n - 1 along an axis.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr._timm import timm
from setr.errors import UsageError
from setr.layers.adapted_vit import AdaptedViT, adapt
from setr.layers.cpu_blocks import takes_attention
from setr.layers.positions import is_known, resize_maps

_sam: Any = timm.models.vision_transformer_sam

NORM_EPS = 1e-6
"""Epsilon of the layer norms that the published weights were trained with; timm's have 1e-5."""


class WindowAttention(_sam.Attention):
    """timm's attention on the tokens of a patch grid, which makes the windows itself.

    Windows are padded at the bottom and right as in timm: padding attends and is attended to.

    Attributes:
        window_size: side of a window in patches; 0 to attend to the whole image.
    """

    window_size: int

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, C) tokens of an (h, w) grid -> (B, h*w, C)."""
        (B, _, C), (h, w) = x.shape, grid
        (ny, rows), (nx, columns) = self._split(h), self._split(w)
        qkv = self._padded_qkv(x.unflatten(1, grid), ny * rows - h, nx * columns - w)
        qkv = qkv.reshape(B, ny, rows, nx, columns, 3, self.num_heads, C // self.num_heads)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # 3, B, ny, nx, M, rows, columns, d
        q, k, v = qkv.reshape(3, B * ny * nx, self.num_heads, rows * columns, -1).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        scale = q.shape[-1] ** -0.5
        if self.use_rel_pos:
            q, k = self._with_positions(q, k, (rows, columns))
        out = self._attend(q, k, v, scale)
        out = out.reshape(B, ny, nx, self.num_heads, rows, columns, -1)
        out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, ny * rows, nx * columns, C)
        return cast(Tensor, self.proj_drop(self.proj(out[:, :h, :w].flatten(1, 2))))

    def places(self, grid: tuple[int, int]) -> Tensor:
        """The patch in each place of the windows of a grid: (windows, N), -1 where padded."""
        h, w = grid
        (ny, rows), (nx, columns) = self._split(h), self._split(w)
        patches = torch.arange(h * w, device=self.proj.weight.device).view(h, w)
        padded = F.pad(patches, (0, nx * columns - w, 0, ny * rows - h), value=-1)
        windows = padded.view(ny, rows, nx, columns).transpose(1, 2)
        return windows.reshape(ny * nx, rows * columns)

    def _split(self, length: int) -> tuple[int, int]:
        """Number of windows along an axis, and their length."""
        s = self.window_size
        return ((length + s - 1) // s, s) if s else (1, length)

    def _padded_qkv(self, x: Tensor, down: int, right: int) -> Tensor:
        """The projection of a map padded with zeros, without computing it for the padding."""
        if not self.window_size or is_known((down, right), (0, 0)):
            return cast(Tensor, self.qkv(x))
        qkv = F.pad(F.linear(x, self.qkv.weight), (0, 0, 0, right, 0, down))
        return qkv if self.qkv.bias is None else qkv + self.qkv.bias.to(qkv.dtype)

    def _with_positions(self, q: Tensor, k: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Append channels whose product is the position's part of the score: (B, M, N, d + h + w).

        A query has its product with the vector of the offset to every row and column, a key a one
        at its own row and column. Both sums of a score stay in one matrix product.
        """
        B, M, N, d = q.shape
        h, w = grid
        maps = q.reshape(B, M, h, w, d)
        down, across = _by_pair(self.rel_pos_h, h), _by_pair(self.rel_pos_w, w)
        to_rows = torch.einsum("bmyxd,ykd->bmyxk", maps, down)
        to_columns = torch.einsum("bmyxd,xkd->bmyxk", maps, across)
        products = torch.cat([to_rows, to_columns], dim=-1).reshape(B, M, N, h + w)
        row, column = (torch.arange(n, device=q.device) for n in grid)
        is_row = (row[:, None] == row)[:, None].expand(h, w, h)
        is_column = (column[:, None] == column)[None].expand(h, w, w)
        own = torch.cat([is_row, is_column], dim=-1).reshape(N, h + w)
        # the scale of the scores is undone for the products
        q = torch.cat([q, products.to(q.dtype) * d**0.5], dim=-1)
        return q, torch.cat([k, own.to(k.dtype).expand(B, M, N, h + w)], dim=-1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """softmax(q k^T * scale) v: (B, M, N, d') queries and keys, (B, M, N, d) values.

        torch's kernels without a matrix of scores need values as wide as the keys, and on GPUs
        widths divisible by 8; elsewhere the zeros would only be more work.
        """
        d, wide = v.shape[-1], q.shape[-1]
        drop = self.attn_drop.p if self.training else 0.0
        if not (q.is_meta or torch.compiler.is_exporting() or takes_attention(q, k) or wide == d):
            wide += -wide % 8
            q, k, v = (F.pad(x, (0, wide - x.shape[-1])) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=scale)
        return out[..., :d]


def _by_pair(table: Tensor, length: int) -> Tensor:
    """A table's vector for each pair of places along an axis: (length, length, d), query first."""
    table = resample_offsets(table, length)
    place = torch.arange(length, device=table.device)
    offsets = place[:, None] - place + (length - 1)
    return table.index_select(0, offsets.flatten()).view(length, length, -1)


def resample_offsets(table: Tensor, length: int) -> Tensor:
    """Resample a table linearly to another length of the axis: (2n - 1, d) -> (2 length - 1, d)."""
    if is_known((2 * length - 1,), (len(table),)):
        return table
    lines = resize_maps(table.t()[None, :, :, None], (2 * length - 1, 1))
    return lines[0, :, :, 0].t()


class WindowBlock(_sam.Block):
    """timm's block on tokens, whose attention makes the windows."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, C) tokens of an (h, w) grid -> (B, h*w, C)."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), grid)))
        return cast(Tensor, x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


class WindowedViT(AdaptedViT, _sam.VisionTransformerSAM):
    """timm's ViT of SAM for images of any size.

    Attributes:
        window_size: side in patches of the blocks' windows, 0 if all attend globally.
    """

    num_prefix_tokens = 0
    window_size = 0

    def block_arguments(self, tokens: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        """The patch grid."""
        return {"grid": grid}


def make_windowed(vit: Any, name: str) -> None:
    """Make one of timm's `VisionTransformerSAM` usable as an encoder.

    Parameters keep their names and values; absolute positions become (1, N, C). Blocks become those
    of a plain ViT on tokens, whose attention makes the windows; so drop path drops a block for an
    image, not for single windows.

    Raises:
        SetrError: rotary positions, which timm makes for one grid.
    """
    if vit.rope_global is not None:
        raise UsageError(f"encoder '{name}': use_rope needs images of one size; leave it out")
    adapt(vit, WindowedViT)
    vit.norm = nn.Identity()  # behind the blocks only SAM's neck follows, which is not used
    if vit.pos_embed is not None:
        vit.pos_embed = nn.Parameter(vit.pos_embed.detach().flatten(1, 2))
    vit.window_size = max(block.window_size for block in vit.blocks)
    for block in vit.blocks:
        block.__class__, block.attn.__class__ = WindowBlock, WindowAttention
        block.attn.window_size = block.window_size
        for part in block.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = NORM_EPS
