"""Segmenter's decoder: one learned token per class, and a small transformer over all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.errors import USAGE, SetrError
from setr.layers.cpu_blocks import speed_up
from setr.layers.recompute import recompute_cheap

HEAD_WIDTH = 64
"""Channels of an attention head, as in every ViT of the paper."""


class MaskTransformer(nn.Module):
    """Mask transformer of Strudel et al. 2021 (Segmenter, arXiv 2105.05633), section 3.2.

    Tokens of the patches and of the classes attend to each other. A mask is then the cosine
    between the two at every patch, and a norm over the classes makes logits of it.

    Args:
        in_channels: width C of the encoder.
        num_classes: K.
        num_layers: blocks of the transformer; 2 in the paper.
        channels: their width D; by default the encoder's, as in the paper.
        num_heads: attention heads; by default one per 64 channels.
        mlp_ratio: width of a block's MLP over its own.
        drop_path: probability of leaving a block out in training, from 0 in the first to this in
            the last.
        norm_eps: epsilon of the decoder's norms.
        encoder_eps: epsilon of the encoder's final norm, with which the decoder begins.

    Raises:
        SetrError: a width that the heads do not divide, or no blocks.
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
            raise SetrError(f"num_layers {num_layers}: give at least 1", code=USAGE)
        if width % heads:
            raise SetrError(
                f"channels {width}: {heads} heads do not divide it; give a multiple, or num_heads",
                code=USAGE,
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
        """List of (B, C, h, w), the last is used -> logits (B, K, h, w)."""
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
    """A pre-norm transformer block of timm's, as in the encoder."""
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
