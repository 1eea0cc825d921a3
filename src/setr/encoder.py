"""A plain vision transformer as a segmentation encoder (paper section 3.2).

A thin wrapper around timm: the image becomes a sequence of patches, every block attends globally at
constant resolution, and the outputs of selected blocks ("taps") are returned as feature maps.
Unlike the pyramid of a convolutional backbone, all maps have the same size.

Shapes: B batch, H x W image, p patch size, C embedding width, h = ceil(H/p), w = ceil(W/p).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from setr.arguments.choices import PosInterp, PrefixTokens, Readout
from setr.layers.adapted_vit import rope_by_block
from setr.layers.backbone import Backbone, require_taps
from setr.layers.cpu_blocks import speed_up
from setr.layers.patch_embedding import embed_in_full_precision, overlap_patches
from setr.layers.positions import (
    num_pos_prefix,
    prefix_names,
    require_absolute_positions,
    resample_grid,
)
from setr.layers.readout import read_out, require_readout
from setr.layers.recompute import recompute_cheap
from setr.layers.timm_vit import create_vit
from setr.layers.token_merging import Merging, most_alike, require_mergeable


class Encoder(Backbone):
    """Any timm ViT, returning one feature map per tapped block.

    Args:
        name: timm model name, for example `vit_large_patch16_384` or `vit_small_patch14_dinov2`.
        taps: numbers of the blocks to return, ascending, counted from 1 as in the paper. Blocks
            after the last tap and the final norm are removed: they would never receive a gradient.
        img_size: image side or (height, width) in pixels for which position embeddings are created;
            None keeps the model's default. Images of other sizes work: the position embeddings are
            resampled at run time.
        pos_interp: how absolute position embeddings are resampled: `bicubic` (antialiased, as in
            timm), `bilinear` (as in the 2021 SETR code) or `bicubic_plain` (not antialiased, as in
            mmsegmentation's other ViTs).
        prefix_tokens: `keep` class, distillation and register tokens through the blocks, or `drop`
            them after the position embedding (as both public SETR-MLA implementations do).
        patch_stride: pixels between neighbouring tokens; None for the patch size, as in the paper.
            With a smaller stride patches overlap: a finer map from the same weights (Amir et al.
            2021, section 3.1). The cost of attention grows with the fourth power of 1 / stride.
        merge_tokens: share of the 2x2 groups of patches, 0 to 1, that go through all blocks but the
            first as one token each (`token_merging.py`).
        norm_eps: epsilon of the blocks' layer norms; None keeps the model's own, usually 1e-6.
        readout: what becomes of the class token behind each tapped block: `ignore` it, `add` it to
            every patch token, or `concat` it to every patch token along the channels (Ranftl et al.
            2021, section 3). Other prefix tokens are ignored, except by `mean`, which adds the mean
            of all. Of an encoder with registers only, the first one is the class token.
        prune_norm: remove the final norm; False only for encoders that apply it.
        timm_args: further keyword arguments of `timm.create_model`, for example `depth`,
            `drop_path_rate` or `in_chans` (number of image channels, 3 by default).

    Raises:
        SetrError: unknown model name, a model that does not support variable input sizes, or a
            readout of a class token that is not there.
    """

    stage_pattern = r"\bvit\.blocks\.(\d+)\."
    first_stage = 0

    def __init__(
        self,
        name: str,
        *,
        taps: tuple[int, ...],
        img_size: int | tuple[int, int] | None = None,
        pos_interp: PosInterp = "bicubic",
        prefix_tokens: PrefixTokens = "keep",
        patch_stride: int | None = None,
        merge_tokens: float = 0.0,
        norm_eps: float | None = None,
        readout: Readout = "ignore",
        prune_norm: bool = True,
        **timm_args: Any,
    ) -> None:
        super().__init__()
        self.vit = create_vit(name, img_size=img_size, **timm_args)
        require_taps(taps, name, "blocks", count=len(self.vit.blocks))
        self.taps = tuple(taps)
        self.vit.prune_intermediate_layers(
            [tap - 1 for tap in taps], prune_norm=prune_norm, prune_head=True
        )
        for block in self.vit.blocks:
            speed_up(block)
            recompute_cheap(block)
        if norm_eps is not None:
            for part in self.vit.blocks.modules():
                if isinstance(part, nn.LayerNorm):
                    part.eps = norm_eps
        if patch_stride is not None:
            overlap_patches(self.vit, name, patch_stride)
        embed_in_full_precision(self.vit.patch_embed)

        self.patch_size = self.vit.patch_embed.feat_ratio()
        self.in_chans = timm_args.get("in_chans", 3)
        self.window_size = getattr(self.vit, "window_size", 0)
        self.channels: int = self.vit.embed_dim
        self.widths = [self.channels * (2 if readout == "concat" else 1)] * len(taps)

        self.drop_prefix = prefix_tokens == "drop" and self.vit.num_prefix_tokens > 0
        require_readout(self.vit, name, readout, dropped=self.drop_prefix)
        self.readout = readout
        self.pos_interp = pos_interp
        self.num_pos_prefix = num_pos_prefix(self.vit)
        if self.drop_prefix or pos_interp != "bicubic":
            require_absolute_positions(self.vit, name)
        if self.drop_prefix:
            self.vit.num_prefix_tokens = 0
            self.unused = frozenset(f"vit.{name}" for name in prefix_names(self.vit))
            for name in prefix_names(self.vit):
                getattr(self.vit, name).requires_grad_(False)
        if not hasattr(self.vit, "positions"):  # `FlexibleViT` resamples in its own way
            self.vit._pos_embed = self._pos_embed
        self.name = name
        self.set_merge_tokens(merge_tokens)

    def set_merge_tokens(self, share: float) -> None:
        """Merge a share of the 2x2 groups of patches, 0 to 1, behind the first block.

        Raises:
            SetrError: another share, or an encoder whose blocks need the whole grid.
        """
        require_mergeable(self.vit, self.name, share)
        self.merge_tokens = share

    def stages(self) -> list[nn.Module]:
        """The blocks up to the last tap."""
        return list(self.vit.blocks)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass to save memory; gradients stay the same."""
        self.vit.set_grad_checkpointing(enable)
        for block in self.vit.blocks:
            block.keeps_all = enable

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, in_chans, H, W), any H and W -> one (B, C, h, w) map per tap.

        Sides that are not multiples of the patch size are padded with zeros at the bottom or right.
        The maps are views of the blocks' tokens, in channels-last layout; with a readout, copies.
        For the readout `concat` they have 2C channels, the class token's last.
        """
        tokens, rope, (h, w) = self.embed(images)
        angles = rope_by_block(rope, len(self.vit.blocks))
        own = getattr(self.vit, "block_arguments", None)
        arguments = {} if own is None else own(tokens, (h, w))
        P = self.vit.num_prefix_tokens
        merging: Merging | None = None
        taken: list[tuple[Tensor, Merging | None]] = []
        for number, block in enumerate(self.vit.blocks, 1):
            tokens = self.run_block(block, tokens, angles[number - 1], **arguments)
            if number in self.taps:
                taken.append((tokens, merging))
            if number == 1 and self.merge_tokens:
                tokens, merging = self.merged(tokens, P, (h, w))
                angles = [None, *merging.turned(angles[1:])]
        maps = []
        for tokens, merging in taken:
            patches = tokens[:, P:] if merging is None else merging.restore(tokens[:, P:])
            found = read_out(patches, tokens[:, :P], self.readout)
            maps.append(found.reshape(images.shape[0], h, w, -1).permute(0, 3, 1, 2))
        return maps

    def merged(self, tokens: Tensor, before: int, grid: tuple[int, int]) -> tuple[Tensor, Merging]:
        """Merge the patches among (B, N, C) tokens, which follow the first `before` ones."""
        merging = most_alike(tokens[:, before:], grid, self.merge_tokens)
        return torch.cat([tokens[:, :before], merging.merge(tokens[:, before:])], dim=1), merging

    def run_block(
        self, block: nn.Module, tokens: Tensor, rope: Tensor | None, **options: Any
    ) -> Tensor:
        """Run a block on (B, N, C) tokens; `options` are further keyword arguments of it."""
        if rope is not None:
            options["rope"] = rope
        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, tokens, use_reentrant=False, **options)
        else:
            out = block(tokens, **options)
        return out

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """What the first block receives.

        Returns:
            Tokens (B, N, C), prefix tokens first; the rotary embedding, if the ViT has one; and the
            patch grid (h, w).
        """
        padded, grid = self.padded(images)
        embedded = self.vit._pos_embed(self.vit.patch_embed(padded))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        return self.vit.norm_pre(tokens), rope, grid

    def _pos_embed(self, patches: Tensor) -> Any:
        """As timm's method, with `pos_interp` and `prefix_tokens`.

        (B, h, w, C) -> (B, N, C); a pair with the rotary embedding for a ViT that can have one.
        """
        vit, (B, h, w, C) = self.vit, patches.shape
        tokens = patches.reshape(B, h * w, C)
        learned = [getattr(vit, name) for name in prefix_names(vit)]
        prefix = torch.cat(learned, dim=1) if learned and not self.drop_prefix else None
        if vit.pos_embed is not None:
            positions, count = vit.pos_embed, self.num_pos_prefix
            own = vit.patch_embed.grid_size
            tokens = tokens + resample_grid(positions[:, count:], own, (h, w), mode=self.pos_interp)
            if prefix is not None and count:
                prefix = prefix + positions[:, :count]
        if prefix is not None:
            tokens = torch.cat([prefix.expand(B, -1, -1), tokens], dim=1)
        tokens = vit.pos_drop(tokens)
        if not hasattr(vit, "rope"):
            return tokens
        return tokens, None if vit.rope is None else vit.rope.get_embed(shape=(h, w))
