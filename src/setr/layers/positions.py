"""Prefix tokens of timm's ViTs, and the absolute position embeddings of tokens and patches.

Shapes: C embedding width, h x w patch grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.arguments.choices import PosInterp
from setr.errors import UsageError
from setr.layers.antialiased import resize_by_products
from setr.layers.products import exact_products

PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
"""Prefix tokens of a timm ViT, in the order in which they precede the patch tokens."""


def prefix_names(vit: Any) -> list[str]:
    """Names of a timm ViT's prefix tokens, in order."""
    return [name for name in PREFIX_TOKENS if getattr(vit, name, None) is not None]


def num_pos_prefix(vit: Any) -> int:
    """Number of a timm ViT's prefix tokens that have a position embedding."""
    if getattr(vit, "pos_embed", None) is None:
        return 0
    rows, cols = vit.patch_embed.grid_size
    return int(vit.pos_embed.shape[1] - rows * cols)


def grid_positions(vit: Any) -> Tensor | None:
    """The position embeddings (1, h*w, C) of a timm ViT's own patch grid, or None."""
    if hasattr(vit, "positions"):  # `FlexibleViT`
        return vit.positions()
    embedding = getattr(vit, "pos_embed", None)
    if not isinstance(embedding, Tensor):
        return None
    h, w = vit.patch_embed.grid_size
    return embedding[:, -h * w :]


def resample_grid(
    embedding: Tensor, old: tuple[int, int], new: tuple[int, int], *, mode: PosInterp
) -> Tensor:
    """Resample position embeddings of a patch grid: (1, h*w, C) -> (1, h'*w', C).

    `bicubic` is antialiased and equals timm's `resample_abs_pos_embed`; `bilinear` is what the
    2021 SETR code and mmsegmentation's SETR do, `bicubic_plain` what its other ViTs do: not
    antialiased, and with another kernel (Keys' a is -0.75, not -0.5). `embedding` must not include
    prefix tokens.
    """
    if is_known(new, old):
        return embedding
    maps = embedding.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    maps = resize_maps(maps, new, mode=mode.removesuffix("_plain"), antialias=mode == "bicubic")
    return maps.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)


def resize_maps(
    maps: Tensor,
    size: tuple[int, int],
    *,
    mode: str = "bilinear",
    antialias: bool = False,
    align_corners: bool = False,
) -> Tensor:
    """Resize maps (B, C, h, w) to a size, as `F.interpolate`, also compiled for several sizes.

    Half precision is resized in fp32, and rounded once. The gradient of the antialiased modes
    cannot be compiled for a size that is not fixed (torch 2.13). Resizing is linear along each
    axis, so an identity matrix resized without a gradient gives the factors of two products. An
    exported graph computes them by itself.
    """
    wide = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    traced = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    options: dict[str, Any] = {"mode": mode, "antialias": antialias, "align_corners": align_corners}
    if antialias and not align_corners and torch.compiler.is_exporting():
        return resize_by_products(wide, size, mode).to(maps.dtype)
    if not (traced and antialias):
        return F.interpolate(wide, size=size, **options).to(maps.dtype)

    def factors(old: int, new: int) -> Tensor:
        eye = torch.eye(old, dtype=wide.dtype, device=maps.device)[None, None]
        return F.interpolate(eye, size=(new, old), **options)[0, 0]

    (h, w), device = maps.shape[-2:], maps.device
    with exact_products(device):
        return (factors(h, size[0]) @ wide @ factors(w, size[1]).T).to(maps.dtype)


def is_known(lengths: tuple[int, ...], values: tuple[int, ...]) -> bool:
    """Whether lengths have these values in every image, also where a graph is traced for any."""
    return all(isinstance(n, int) for n in lengths) and tuple(lengths) == tuple(values)


def require_absolute_positions(vit: Any, name: str) -> None:
    """Raise `SetrError` unless a timm ViT embeds the positions of all tokens absolutely."""
    rotary = getattr(vit, "rope", None) is not None
    if rotary or getattr(vit, "pos_embed", None) is None or getattr(vit, "no_embed_class", False):
        raise UsageError(
            f"encoder '{name}': pos_interp and prefix_tokens need an absolute position embedding "
            "that covers the prefix tokens; leave both at their defaults"
        )
