"""What adapted classes of timm share: the methods of its `VisionTransformer` that encoders use.

timm has ViTs of other classes: with a relative position bias (BEiT and its own), with windows
(SAM), and NaFlex. An adapted class takes images of any size, in one forward pass for all of them.

Shapes: B batch, h x w patch grid, N tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class AdaptedViT:
    """First base of an adapted class of timm; the second is timm's class.

    Its `patch_embed` returns (B, h, w, C) and pads images to whole patches.
    """

    patch_embed: Any
    norm_pre: Any
    norm: Any
    blocks: Any
    num_prefix_tokens: int
    grad_checkpointing: bool

    def _pos_embed(self, patches: Tensor) -> Any:
        """(B, h, w, C) -> tokens (B, N, C), prefix tokens first; or a pair with rotary angles.

        `Encoder` has one for all classes without their own.
        """
        raise NotImplementedError

    def block_arguments(
        self, tokens: Tensor, grid: tuple[int, int], rope: Tensor | None
    ) -> list[dict[str, Any]]:
        """Keyword arguments of each block for tokens (B, N, C) of an (h, w) patch grid.

        Unless a class has others, the rotary angles, if there are any.
        """
        by_block = rope_by_block(rope, len(self.blocks))
        return [{} if angles is None else {"rope": angles} for angles in by_block]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass."""
        self.grad_checkpointing = enable

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
        embedded = self._pos_embed(patches)
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        tokens = self.norm_pre(tokens)
        arguments = self.block_arguments(tokens, (h, w), rope)
        found = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1] if stop_early else self.blocks):
            if self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False, **arguments[i])
            else:
                tokens = block(tokens, **arguments[i])
            if i in wanted:
                found[i] = self.norm(tokens) if norm else tokens
        prefix = self.num_prefix_tokens
        maps: list[Any] = [found[i][:, prefix:] for i in sorted(found)]
        if output_fmt == "NCHW":
            maps = [m.unflatten(1, (h, w)).permute(0, 3, 1, 2).contiguous() for m in maps]
        if return_prefix_tokens:
            maps = [(m, found[i][:, :prefix]) for m, i in zip(maps, sorted(found), strict=True)]
        return maps if intermediates_only else (self.norm(tokens), maps)


def adapt(vit: Any, kind: type[AdaptedViT]) -> None:
    """Make a timm ViT one of an adapted class: its patch embedding takes images of any size."""
    from setr._timm import timm

    vit.__class__ = kind
    embed = vit.patch_embed
    embed.flatten, embed.output_fmt = False, timm.layers.Format.NHWC
    embed.strict_img_size, embed.dynamic_img_pad = False, True
    if not hasattr(vit, "norm_pre"):
        vit.norm_pre = nn.Identity()


def rope_by_block(rope: Tensor | None, depth: int) -> list[Tensor | None]:
    """The rotary angles of each block: (N, 2D) are those of all, (depth, M, N, 2D) one's each."""
    if rope is None or rope.ndim == 2:
        return [rope] * depth
    return list(rope[:depth])
