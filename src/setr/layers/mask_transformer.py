"""Segmenter's decoder: a small transformer over patch tokens and one learned token per class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.errors import UsageError
from setr.layers.cpu_blocks import speed_up
from setr.layers.recompute import recompute_cheap

HEAD_WIDTH = 64
"""Channels per attention head, as in all ViTs of the paper."""


class MaskTransformer(nn.Module):
    """Mask transformer of Strudel et al. 2021 (Segmenter, arXiv 2105.05633), section 3.2.

    Patch tokens and class tokens attend to each other. The cosine similarity of each patch token to
    each class token, layer-normalised over the classes, gives the logits.

    Args:
        in_channels: embedding width C of the encoder.
        num_classes: number of classes K.
        num_layers: number of transformer blocks; 2 in the paper.
        channels: embedding width D of the blocks; by default the encoder's, as in the paper.
        num_heads: number of attention heads; by default one per 64 channels.
        mlp_ratio: hidden width of the MLPs as a multiple of `channels`.
        drop_path: stochastic depth rate of the last block; it rises linearly from 0 in the first.
        norm_eps: epsilon of the decoder's norms.
        encoder_eps: epsilon of the encoder's final norm, which is the decoder's first layer.

    Raises:
        SetrError: `channels` is not divisible by the number of heads, or there are no blocks.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_layers: int = 2,
        channels: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        encoder_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        width = channels or in_channels
        heads = num_heads or max(1, width // HEAD_WIDTH)
        if num_layers < 1:
            raise UsageError(f"num_layers {num_layers}: give at least 1")
        if width % heads:
            raise UsageError(
                f"channels {width}: not divisible by {heads} attention heads; give a multiple, or "
                "another num_heads"
            )
        self.norm = nn.LayerNorm(in_channels, eps=encoder_eps)
        self.project = nn.Linear(in_channels, width)
        self.class_tokens = nn.Parameter(torch.empty(1, num_classes, width))
        rates = [drop_path * i / max(1, num_layers - 1) for i in range(num_layers)]
        self.blocks = nn.Sequential(
            *(_block(width, heads, mlp_ratio, rate, norm_eps) for rate in rates)
        )
        self.last_norm = nn.LayerNorm(width, eps=norm_eps)
        self.patch_proj = nn.Linear(width, width, bias=False)
        self.class_proj = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_classes, eps=norm_eps)
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.class_tokens, std=0.02)
        recompute_cheap(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (B, C, h, w), of which the last is used -> logits (B, K, h, w)."""
        h, w = features[-1].shape[-2:]
        tokens = self.project(self.norm(features[-1].flatten(2).transpose(1, 2)))
        K = self.class_tokens.shape[1]
        classes = self.class_tokens.expand(tokens.shape[0], -1, -1)
        tokens = self.last_norm(self.blocks(torch.cat([tokens, classes.to(tokens.dtype)], dim=1)))
        patches = F.normalize(self.patch_proj(tokens[:, :-K]), dim=-1)
        classes = F.normalize(self.class_proj(tokens[:, -K:]), dim=-1)
        masks: Tensor = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, (h, w))


def _block(width: int, heads: int, mlp_ratio: float, drop_path: float, eps: float) -> nn.Module:
    """A pre-norm transformer block from timm, as in the encoder."""
    from setr._timm import timm

    block: Any = timm.models.vision_transformer.Block(
        width, heads, mlp_ratio, qkv_bias=True, drop_path=drop_path
    )
    block.norm1.eps = block.norm2.eps = eps
    speed_up(block)
    return block


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
