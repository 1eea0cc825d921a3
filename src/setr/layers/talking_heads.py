"""CaiT (Touvron et al. 2021, "Going deeper with Image Transformers", arXiv 2103.17239) at any size.

Its blocks mix the scores of their attention heads before and after the softmax (talking heads), so
no kernel computes them without storing them: memory grows with the square of the number of patches.
The class token joins only behind the blocks that see the patches; these last layers are not used.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any

from setr._timm import timm
from setr.layers.adapted_vit import AdaptedViT, adapt

_cait: Any = timm.models.cait


class TalkingViT(AdaptedViT, _cait.Cait):
    """timm's CaiT for images of any size, without its class-attention layers."""


def make_without_class(vit: Any) -> None:
    """Make one of timm's `Cait` usable as an encoder, without class token and its layers."""
    adapt(vit, TalkingViT)
    vit.cls_token = vit.blocks_token_only = None
    vit.num_prefix_tokens = 0
