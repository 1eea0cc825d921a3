"""DINOv3's rotary positions, made where the model is.

timm makes their grid on the CPU in every pass and copies it, for which a GPU waits and which no
CUDA graph can hold. Here it is made on the model's device, of the same numbers to the bit.

Imported where such an encoder is built, since it imports timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from setr._timm import timm


def make_on_device(vit: Any) -> None:
    """Let a timm ViT make its positions where they are needed, if they are DINOv3's."""
    rope = getattr(vit, "rope", None)
    if type(rope) is timm.layers.RotaryEmbeddingDinoV3:
        rope.__class__ = Rotary


class Rotary(timm.layers.RotaryEmbeddingDinoV3):
    """timm's positions with another grid; for one that is changed at random it stays timm's."""

    def _create_embed(self, feat_shape: Sequence[int], no_aug: bool = False) -> Tensor:
        """Sines and cosines for an (h, w) grid: (h*w, 2 * dim)."""
        if self.training and self.aug_active and not no_aug:  # draws from the CPU's generator
            drawn: Tensor = super()._create_embed(feat_shape, no_aug)
            return drawn
        share = {"max": max, "min": min}.get(self.normalize_coords)
        places = [self._places(side, share(feat_shape) if share else side) for side in feat_shape]
        axes: Any = torch.meshgrid(places, indexing="ij")
        axes = axes if self.grid_indexing == "ij" else axes[::-1]
        coords = 2.0 * torch.stack(axes, dim=-1) - 1.0
        return torch.cat(self._get_pos_embed_from_coords(coords.flatten(0, 1)), dim=-1)

    def _places(self, side: int, whole: int) -> Tensor:
        """The middles of a side's cells, as shares of a whole side."""
        places = torch.arange(side, dtype=torch.float32, device=self.periods.device)
        # by a number, CUDA would divide by multiplying with the inverse, which rounds once more
        return (places + 0.5 + self.grid_offset) / places.new_full((), float(whole))
