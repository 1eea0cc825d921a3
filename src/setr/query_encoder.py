"""A ViT whose last blocks also process learned queries: the encoder of EoMT (arXiv 2503.19108).

EoMT (Kerssies et al., CVPR 2025) has no decoder blocks of its own. Queries join the patch tokens
before the last blocks, and attend to them and are attended by them in the blocks' own attention.

Shapes: B batch, C embedding width, h x w patch grid, Q queries, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.encoder import Encoder
from setr.errors import UsageError
from setr.layers.adapted_vit import rope_by_block
from setr.layers.token_merging import Merging

Guide = Callable[[Tensor, Tensor], Tensor]
"""Normalised patches (B, C, h, w) and queries (B, C, 1, Q) -> mask logits (B, Q, h', w')."""


class QueryEncoder(Encoder):
    """As `Encoder`, but the last blocks can process queries, and the outputs are normalised.

    Args:
        name: timm name of a ViT.
        taps: the last block, counted from 1; no other can be tapped.
        query_blocks: number of last blocks that process the queries: 3 in the paper for ViT-S and
            ViT-B, 4 for ViT-L.
        arguments: further keyword arguments of `Encoder`.

    Attributes:
        mask_probability: (query_blocks,) for each of these blocks, the share of queries that attend
            only to the patches inside their own mask while training; all 0 unless `set_progress` is
            called. A tensor on the CPU, whose values a compiled graph reads anew in each step.
        masked: whether the share is above 0.

    Raises:
        SetrError: more query blocks than blocks, or several taps.

    An encoder without a final norm (RADIO; those that norm their pooled output) gets a new one.
    """

    def __init__(
        self, name: str, *, taps: tuple[int, ...], query_blocks: int = 4, **arguments: Any
    ) -> None:
        super().__init__(name, taps=taps, prune_norm=False, **arguments)
        if isinstance(self.vit.norm, nn.Identity):
            self.vit.norm = nn.LayerNorm(self.channels, eps=1e-6)
        if arguments.get("norm_eps") is not None:
            self.vit.norm.eps = arguments["norm_eps"]
        depth = len(self.vit.blocks)
        if len(taps) > 1 or not 1 <= query_blocks <= depth:
            raise UsageError(
                f"taps {taps}, query_blocks {query_blocks}: give the last block as the only tap, "
                f"and 1 to {depth} query blocks"
            )
        self.num_query_blocks = query_blocks
        self.mask_probability = torch.zeros(query_blocks, device="cpu")
        self.masked = [False] * query_blocks

    def set_progress(self, done: float) -> None:
        """Anneal the masked attention (section 3.3 of the paper).

        Training is divided into `query_blocks + 2` equal phases, as in the authors' settings. Block
        i (from 1) uses masks for all queries up to the end of phase i, for a falling share of them
        in the next phase, and none later.

        Args:
            done: share of the training steps that are done, 0 to 1.
        """
        phases = self.num_query_blocks + 2
        for i in range(self.num_query_blocks):
            into = min(1.0, max(0.0, done * phases - (i + 1)))
            self.mask_probability[i] = (1.0 - into) ** 0.9
            self.masked[i] = into < 1.0

    def forward(
        self, images: Tensor, queries: Tensor | None = None, guide: Guide | None = None
    ) -> list[Tensor]:
        """Normalised images (B, in_chans, H, W) -> [patches (B, C, h, w), queries (B, C, 1, Q)].

        Args:
            images: of any size, padded as by `Encoder`.
            queries: (Q, C) learned queries; None for the patches alone.
            guide: called with the normalised tokens before each query block; its masks limit the
                attention of a share of the queries, `mask_probability`. None for no masks.
        """
        tokens, rope, grid = self.embed(images)
        before = len(self.vit.blocks) - self.num_query_blocks
        ropes = rope_by_block(rope, len(self.vit.blocks))
        Q, merging = 0, None
        for number, block in enumerate(self.vit.blocks):
            if number == before and queries is not None:
                Q = len(queries)
                queries = queries.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
                tokens = torch.cat([queries, tokens], dim=1)
            if ropes[number] is not None:  # which belongs to the patches, behind all other tokens
                block.attn.num_prefix_tokens = Q + self.vit.num_prefix_tokens
            masked = {}
            if number >= before and guide is not None:
                logits = guide(*self._split(tokens, Q, grid, merging))
                if self.masked[number - before]:
                    share = self.mask_probability[number - before]
                    mask = self._attention_mask(logits, tokens.shape[1], grid, share, merging)
                    masked = {"attn_mask": mask}
            tokens = self.run_block(block, tokens, ropes[number], **masked)
            if number == 0 and self.merge_tokens:
                tokens, merging = self.merged(tokens, Q + self.vit.num_prefix_tokens, grid)
                ropes = [None, *merging.turned(ropes[1:])]
        return self._split(tokens, Q, grid, merging)[: 2 if Q else 1]

    def _split(
        self, tokens: Tensor, Q: int, grid: tuple[int, int], merging: Merging | None
    ) -> list[Tensor]:
        """The normalised patches (B, C, h, w) and queries (B, C, 1, Q) of (B, N, C) tokens."""
        tokens = self.vit.norm(tokens)
        patches = tokens[:, Q + self.vit.num_prefix_tokens :]
        if merging is not None:
            patches = merging.restore(patches)
        maps = patches.transpose(1, 2).unflatten(2, grid)
        return [maps, tokens[:, :Q].transpose(1, 2)[:, :, None]]

    def _attention_mask(
        self,
        logits: Tensor,
        length: int,
        grid: tuple[int, int],
        share: Tensor,
        merging: Merging | None = None,
    ) -> Tensor:
        """(B, 1, N, N) bool: what each token may attend to; all but the masked queries see all.

        A patch is inside a query's mask if the logits, resized to the patch grid, are positive; a
        merged token, if one of its patches is. `share`, a scalar on the CPU, is that of the masked
        queries.
        """
        B, Q = logits.shape[:2]
        inside = F.interpolate(logits.detach().float(), grid, mode="bilinear").flatten(2) > 0
        if merging is not None:
            inside = merging.merge(inside.float().transpose(1, 2)).transpose(1, 2) > 0
        unmasked = torch.rand(B, Q, 1, device=logits.device) > share
        mask = torch.ones(B, length, length, dtype=torch.bool, device=logits.device)
        mask[:, :Q, -inside.shape[-1] :] = inside | unmasked
        return mask[:, None]

    def layer_depth(self, name: str) -> int:
        """As in `Encoder`; the final norm belongs to the last block."""
        return 1 if "vit.norm." in name else super().layer_depth(name)

    def freeze(self, count: int) -> None:
        """As in `Encoder`; the final norm is trained unless the whole encoder is frozen."""
        super().freeze(count)
        self.vit.norm.requires_grad_(count >= 0 and self._adapters is None)
