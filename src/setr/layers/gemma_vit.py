"""The vision encoder of Gemma 4 (arXiv 2607.02770) as a plain ViT, without pooling and projector.

Its blocks have norms before and after attention and MLP, rotary positions, and norms of queries,
keys and values. Positions are also learned, one vector for each row and one for each column, which
are counted from the upper left and not resampled.

Shapes: B batch, h x w patch grid, N = h * w tokens, C width, D channels of a head.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from setr._timm import timm
from setr.layers.adapted_vit import AdaptedViT, adapt
from setr.layers.patch_embedding import linear_patches

_gemma: Any = timm.models.gemma4_vit
_NO_LIMIT = 1e30
"""What timm's limits of inputs and outputs are without weights, where it has infinity: files with
infinite values are taken for damaged."""


class GemmaViT(AdaptedViT, _gemma.Gemma4VitEncoder):
    """timm's vision encoder of Gemma 4 for images of any size.

    Attributes:
        pos_embed_y: positions (1, rows, C) of rows.
        pos_embed_x: positions (1, columns, C) of columns.
        normalisation: mean and standard deviation of the images it was trained with. timm's class
            scales images itself.
    """

    cls_token = reg_token = pos_embed = rope = None
    normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def positions(self) -> Tensor:
        """Learned positions (1, h*w, C) of the patch grid that the model is for."""
        return self._of_grid(*self.patch_embed.grid_size)

    def _of_grid(self, h: int, w: int) -> Tensor:
        device = self.pos_embed_y.device
        # picked, not sliced, so that exported graphs take any size
        rows = self.pos_embed_y.index_select(1, torch.arange(h, device=device))
        columns = self.pos_embed_x.index_select(1, torch.arange(w, device=device))
        return (rows[:, :, None] + columns[:, None]).flatten(1, 2)

    def _pos_embed(self, patches: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, N, C)."""
        h, w = patches.shape[1:3]
        return patches.flatten(1, 2) + self._of_grid(h, w).to(patches.dtype)

    def block_arguments(self, tokens: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        """Cosines and sines (1, N, D) of the rotations, half of them by column, half by row.

        As timm's, but not by a matrix product, which autocast would round to half precision.
        """
        frequencies = self.rotary_emb.inv_freq.float()
        row, column = (torch.arange(n, device=tokens.device).float() for n in grid)
        places = column[None].expand(grid), row[:, None].expand(grid)
        parts = [p.reshape(1, -1, 1) * frequencies.repeat(2) for p in places]
        angles = torch.cat(parts, dim=-1)
        turned = {"rope_cos": angles.cos(), "rope_sin": angles.sin()}
        return {n: v.to(tokens.dtype) for n, v in turned.items()}


def make_of_any_size(vit: Any, img_size: int | tuple[int, int] | None) -> None:
    """Make one of timm's `Gemma4VitEncoder` usable as an encoder.

    Its linear patch embedding becomes a convolution; positions become parameters of the model.

    Args:
        img_size: image side or (height, width) in pixels that it is for, which no parameter depends
            on; None for that of its pretrained weights.
    """
    embed = vit.patch_embed
    patch_embed = timm.layers.PatchEmbed(
        img_size=img_size or vit.pretrained_cfg["input_size"][1:],
        patch_size=embed.patch_size,
        in_chans=vit.in_chans,
        embed_dim=vit.embed_dim,
        bias=False,
    )
    weight, table = embed.input_proj.weight, embed.position_embedding_table.detach()
    with torch.no_grad():
        patches = linear_patches(weight, embed.patch_size, channels_last=False)
        patch_embed.proj.weight.copy_(patches)
        for name, buffer in vit.blocks.named_buffers():
            if name.endswith(("put_min", "put_max")):
                buffer.clamp_(-_NO_LIMIT, _NO_LIMIT)
    vit.patch_embed = patch_embed
    adapt(vit, GemmaViT)
    vit.pos_embed_x = nn.Parameter(table[:1].clone())
    vit.pos_embed_y = nn.Parameter(table[1:].clone())
    vit.norm, vit.std_bias, vit.std_scale = nn.Identity(), None, None
