"""DINOv3's rotary position embedding, computed on the model's device.

timm computes the coordinate grid on the CPU in every forward pass and copies it, which makes a GPU
wait and cannot be captured in a CUDA graph. Here it is computed on the device, bit-identically.

This module imports timm, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from setr._timm import timm


def make_on_device(vit: Any) -> None:
    """Make a timm ViT compute its rotary embedding on its own device, if it is DINOv3's."""
    rope = getattr(vit, "rope", None)
    if type(rope) is timm.layers.RotaryEmbeddingDinoV3:
        rope.__class__ = Rotary


class Rotary(timm.layers.RotaryEmbeddingDinoV3):
    """Rotary embedding whose grid is made on the device, except with random augmentation."""

    def _create_embed(self, feat_shape: Sequence[int], no_aug: bool = False) -> Tensor:
        """Sines and cosines for an (h, w) grid: (h*w, 2 * dim)."""
        if self.training and self.aug_active and not no_aug:  # uses the CPU's random generator
            return super()._create_embed(feat_shape, no_aug)
        common = {"max": torch.sym_max, "min": torch.sym_min}.get(self.normalize_coords)
        centres = [self._centres(n, common(*feat_shape) if common else n) for n in feat_shape]
        axes: Any = torch.meshgrid(centres, indexing="ij")
        axes = axes if self.grid_indexing == "ij" else axes[::-1]
        coords = 2.0 * torch.stack(axes, dim=-1) - 1.0
        return torch.cat(self._get_pos_embed_from_coords(coords.flatten(0, 1)), dim=-1)

    def _centres(self, cells: int, length: int) -> Tensor:
        """The centres of cells along an axis, divided by `length`."""
        index = torch.arange(cells, dtype=torch.float32, device=self.periods.device)
        # CUDA divides by a Python number by multiplying with its inverse, which rounds once more;
        # a float instead would be a constant of an exported graph
        return (index + 0.5 + self.grid_offset) / index.new_full((), length)
