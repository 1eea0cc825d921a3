"""timm's NaFlex ViT as a plain one: RADIO (NVIDIA), SigLIP 2 NaFlex, and timm's own.

Dehghani et al. 2023, "NaViT" (arXiv 2307.06304); Tschannen et al. 2025, "SigLIP 2" (arXiv
2502.14786); Heinrich et al. 2025, "RADIOv2.5" (arXiv 2412.07679). timm's class also takes patches
of several images in one sequence. Only its way of whole images (B, C, H, W) is kept here, with the
parts and names of timm's other ViTs: a convolution embeds patches, and prefix tokens and positions
belong to the model.

Position embeddings keep the grid that they were trained on, whatever the image size, and are
resampled in every forward pass in the model's own way. RADIO's and timm's `par` models keep the
aspect ratio: positions are resampled to a square of the longer side, of which the image takes the
top left part.

Shapes: B batch, h x w patch grid, N tokens, C width.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from setr._timm import timm
from setr.layers.adapted_vit import AdaptedViT, adapt
from setr.layers.patch_embedding import linear_patches
from setr.layers.positions import resize_maps

_naflex: Any = timm.models.naflexvit
_RESAMPLING = ("interp_mode", "antialias", "align_corners", "ar_preserving")


class StoredGrid:
    """A base of classes whose position embeddings keep their grid and are resampled in each pass.

    Attributes:
        pos_embed: positions (1, h*w, C) of the grid `patch_embed.grid_size`; None if there are
            none or they are factorised.
        pos_embed_y: (1, h, C), the rows' part of factorised positions, or None.
        pos_embed_x: (1, w, C), the columns' part, or None.
        interp_mode: `mode` of `F.interpolate`, whose options `antialias` and `align_corners` are.
        ar_preserving: resample to a square of the longer side, and take its top left part.
    """

    patch_embed: Any
    pos_embed: Any
    pos_embed_y: Any
    pos_embed_x: Any
    cls_token: Any
    reg_token: Any
    pos_drop: Any
    rope: Any
    interp_mode: str
    antialias: bool
    align_corners: bool
    ar_preserving: bool

    def _pos_embed(self, patches: Tensor) -> Any:
        """(B, h, w, C) -> (B, N, C), or a pair with the rotary angles if there are."""
        B, h, w, _ = patches.shape
        tokens = patches.flatten(1, 2)
        if (positions := self.positions()) is not None:
            tokens = tokens + self._resampled(positions, (h, w)).to(tokens.dtype)
        prefix = [t.expand(B, -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        tokens = self.pos_drop(torch.cat([*prefix, tokens], dim=1) if prefix else tokens)
        return tokens if self.rope is None else (tokens, self.rope.get_embed(shape=(h, w)))

    def positions(self) -> Tensor | None:
        """Position embeddings (1, h*w, C) of the model's own grid, also if factorised."""
        if self.pos_embed_y is not None:
            return (self.pos_embed_y[:, :, None] + self.pos_embed_x[:, None]).flatten(1, 2)
        return self.pos_embed

    def _resampled(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Positions (1, n, C) of the model's own grid -> those of an image's grid (1, h*w, C)."""
        own = self.patch_embed.grid_size
        if tuple(grid) == tuple(own):
            return positions
        h, w = grid
        longer = torch.sym_max(h, w)
        maps = resize_maps(
            positions.unflatten(1, own).permute(0, 3, 1, 2),
            (longer, longer) if self.ar_preserving else (h, w),
            mode=self.interp_mode,
            antialias=self.antialias,
            align_corners=self.align_corners,
        )
        if self.ar_preserving:  # a copy, since graphs that were traced with h < w would need none
            maps = maps[:, :, :h, :w].clone(memory_format=torch.contiguous_format)
        return maps.flatten(2).transpose(1, 2)


class FlexibleViT(StoredGrid, AdaptedViT, _naflex.NaFlexVit):
    """timm's NaFlex ViT with the parts of timm's other ViTs."""

    no_embed_class = True  # positions never cover the prefix tokens


def make_plain(vit: Any, img_size: int | tuple[int, int] | None) -> None:
    """Give one of timm's `NaFlexVit` the parts and parameter names of timm's other ViTs.

    Args:
        img_size: image side or (height, width) in pixels that it is for, which no parameter depends
            on; None for that of its pretrained weights.
    """
    embeds = vit.embeds
    p, C = embeds.patch_size, embeds.embed_dim
    h, w = embeds.pos_embed_grid_size or (16, 16)
    weight = embeds.proj.weight
    patch_embed = timm.layers.PatchEmbed(
        img_size=(h * p[0], w * p[1]),
        patch_size=p,
        in_chans=embeds.in_chans,
        embed_dim=C,
        bias=embeds.proj.bias is not None,
    )
    if embeds.is_linear:
        weight = linear_patches(weight, p, channels_last=embeds.channels_last)
    with torch.no_grad():
        patch_embed.proj.weight.copy_(weight)
        if embeds.proj.bias is not None:
            patch_embed.proj.bias.copy_(embeds.proj.bias)
    patch_embed.norm = embeds.norm
    size = img_size or vit.pretrained_cfg["input_size"][1:]
    patch_embed.img_size = timm.layers.to_2tuple(size)

    del vit.embeds
    vit.patch_embed, vit.pos_drop = patch_embed, embeds.pos_drop
    adapt(vit, FlexibleViT)
    vit.cls_token, vit.reg_token = embeds.cls_token, embeds.reg_token
    table = embeds.pos_embed
    vit.pos_embed = None if table is None else nn.Parameter(table.detach().flatten(1, 2))
    vit.pos_embed_y, vit.pos_embed_x = embeds.pos_embed_y, embeds.pos_embed_x
    for option in _RESAMPLING:
        setattr(vit, option, getattr(embeds, f"pos_embed_{option}"))
    if vit.pos_embed_y is not None:  # timm resamples these linearly
        vit.interp_mode, vit.antialias, vit.align_corners = "bilinear", False, False
