"""Fit a checkpoint's patch and position embeddings to a model's patch grid and channels.

Shapes: C embedding width, N tokens with a position, h x w patch grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from setr.arguments.choices import PosInterp
from setr.errors import UsageError
from setr.layers.positions import PREFIX_TOKENS, resample_grid
from setr.weight_files.stored_grid import shape_of

POSITIONS = "encoder.vit.pos_embed"
PATCHES = "encoder.vit.patch_embed.proj.weight"


def flatten_positions(given: dict[str, Tensor]) -> None:
    """Give position embeddings with an axis for each side, SAM's (1, h, w, C), the shape (1, N, C).

    The grid's shape is lost, so `fit_positions` takes it to be square or the model's.
    """
    if POSITIONS in given and given[POSITIONS].ndim == 4:
        given[POSITIONS] = given[POSITIONS].flatten(1, 2)


def fold_prefix(encoder: Any, given: dict[str, Tensor]) -> None:
    """Add the prefix tokens' position embeddings to the tokens if the model has none for them.

    timm's DINOv2 with registers and DeiT-III have position embeddings only for patches; the sum of
    token and position is the same.
    """
    vit = getattr(encoder, "vit", None)
    if vit is None or POSITIONS not in given or encoder.num_pos_prefix:
        return
    count = _stored_prefix(given, 0)
    for name in _prefix_tokens(given):
        token, positions = given[name], given[POSITIONS]
        if 0 < token.shape[1] <= count:
            given[name] = token + positions[:, : token.shape[1]]
            given[POSITIONS] = positions[:, token.shape[1] :]
            count -= token.shape[1]


def fit_positions(
    encoder: Any,
    value: Tensor,
    given: dict[str, Tensor],
    mode: PosInterp,
    source: str,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Resample position embeddings of the patch grid; those of prefix tokens are kept.

    A grid that is not square must be as large as the model's, or that of a known image size.

    Args:
        value: position embeddings (1, N, C), those of prefix tokens first.
        given: all tensors of the checkpoint.
        mode: see `resample_grid`.
        source: name of the file, for error messages.
        size: image size (height, width) that the grid is for, if known.

    Returns:
        (1, N', C), or `value` itself if it fits already or lacks a prefix token.

    Raises:
        SetrError: a grid of unknown shape.
    """
    covered = encoder.num_pos_prefix
    grid = patch_grid(encoder)
    stored = _stored_prefix(given, covered)
    count = value.shape[1] - stored
    if size is not None and count > 0:
        old = shape_of(count, size)
    elif is_square(count):
        old = (round(count**0.5),) * 2
    elif count == grid[0] * grid[1]:
        old = grid
    else:
        raise UsageError(
            f"{source}: {count} position embeddings form neither a square grid nor the model's "
            f"{grid[0]}x{grid[1]}; build the model with the img_size they were trained at"
        )
    if covered > stored or (covered == stored and old == grid):
        return value
    patches = resample_grid(value[:, stored:].float(), old, grid, mode=mode)
    return torch.cat([value[:, :covered].float(), patches], dim=1)


def _prefix_tokens(given: dict[str, Tensor]) -> list[str]:
    """Names of a checkpoint's prefix tokens, in order."""
    names = (f"encoder.vit.{name}" for name in PREFIX_TOKENS)
    return [name for name in names if name in given and given[name].ndim == 3]


def _stored_prefix(given: dict[str, Tensor], covered: int) -> int:
    """Number of prefix tokens with a position in a checkpoint, whose grid is taken to be square.

    Class and distillation token, or all; else the model's number, which is `covered`, or none,
    as in most models with registers.
    """
    count = given[POSITIONS].shape[1]
    tokens = [(name, given[name].shape[1]) for name in _prefix_tokens(given)]
    every = sum(length for _, length in tokens)
    first = sum(length for name, length in tokens if not name.endswith("reg_token"))
    none = 0 if every > first else covered
    return next((n for n in (first, every, covered, none) if is_square(count - n)), covered)


def patch_grid(encoder: Any) -> tuple[int, int]:
    """The patch grid (h, w) that an encoder's positions are for."""
    h, w = encoder.vit.patch_embed.grid_size
    return h, w


def fit_patches(weight: Tensor, own: Tensor) -> Tensor:
    """Resample a patch embedding to another patch size, as timm and FlexiViT do.

    The embedding of a resized patch stays as close as possible to that of the original patch
    (Beyer et al. 2023, arXiv 2212.08013, section 3.4).

    Args:
        weight: (C, channels, p, p).
        own: the model's.

    Returns:
        The weight for the model's patch size; `weight` itself if nothing or more than it differs.
    """
    from setr._timm import timm

    if weight.shape == own.shape or weight.shape[:2] != own.shape[:2]:
        return weight
    return timm.layers.resample_patch_embed(weight, list(own.shape[-2:]))


def reads_rgb_alone(weight: Tensor, own: Tensor) -> bool:
    """Whether a weight is the first convolution of an RGB model, and the model is not for RGB.

    Only first convolutions have three input channels.
    """
    same = weight.ndim == own.ndim == 4 and weight.shape[2:] == own.shape[2:]
    return same and len(weight) == len(own) and weight.shape[1] == 3 != own.shape[1]


def adapt_channels(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt an RGB model's first convolution (O, 3, h, w) to other channels, as timm does."""
    from setr._timm import timm

    return timm.models.adapt_input_conv(in_chans, weight)


def is_square(count: int) -> bool:
    """Whether this many patches form a square grid."""
    return count > 0 and round(count**0.5) ** 2 == count
