"""The vision encoders of Qwen3-VL and DeepSeek as plain ViTs, without their projectors.

Qwen3-VL (arXiv 2511.21631) adds rotary positions to learned ones, which keep the grid that they
were trained on and are resampled bilinearly in every forward pass, with the corners aligned.
DeepSeek's (arXiv 2609.19969) has rotary positions only. Both end in a projector to the width of a
language model, which is not used here.

Shapes: B batch, h x w patch grid, N tokens, C width.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from setr._timm import timm
from setr.layers.adapted_vit import AdaptedViT, adapt
from setr.layers.flexible_vit import StoredGrid

_qwen: Any = timm.models.qwen3_vit
_deepseek: Any = timm.models.deepseek_vit


class QwenViT(StoredGrid, AdaptedViT, _qwen.Qwen3VitEncoder):
    """timm's encoder of Qwen3-VL for images of any size."""

    cls_token = reg_token = pos_embed_y = pos_embed_x = None
    interp_mode, antialias, align_corners, ar_preserving = "bilinear", False, True, False


class DeepseekViT(AdaptedViT, _deepseek.DeepseekVitEncoder):
    """timm's encoder of DeepSeek for images of any size."""

    pos_embed = None


def make_plain_encoder(vit: Any) -> None:
    """Make one of timm's `Qwen3VitEncoder` or `DeepseekVitEncoder` usable as an encoder.

    Parameters and names do not change.
    """
    vit.pos_drop = nn.Identity()
    if isinstance(vit, _deepseek.DeepseekVitEncoder):
        adapt(vit, DeepseekViT)
        return
    adapt(vit, QwenViT)
    vit.norm = nn.Identity()
    vit.patch_embed.grid_size = (vit.pos_embed_grid_size,) * 2
