"""Weights of encoders that read several dates or frames, used on one: Prithvi-EO.

Prithvi (Szwarcman et al. 2024, arXiv 2412.02732) embeds patches of each date by themselves, with a
3-D convolution one date deep, and has a fixed table of positions for all dates. So one date passes
as in a plain ViT, with the convolution's only slice and the positions of the first date.

Shapes: C width, N positions of all dates, n patches of one.
"""

from __future__ import annotations

from torch import Tensor

from setr.errors import SetrError
from setr.weight_files.naming import Tensors

_PROJ = "patch_embed.proj.weight"
_MAX_DATES = 64
_SHARED = 0.7
"""At least this part of a position is the same at all dates: rows and columns have 12 of 16, dates
the rest. Two rows of one date share 10 of 16."""


def is_of_dates(tensors: Tensors) -> bool:
    """Whether tensors with timm's names are of an encoder of several dates or frames."""
    return _PROJ in tensors and tensors[_PROJ].ndim == 5


def of_one_date(tensors: Tensors) -> Tensors:
    """The tensors of a plain ViT for one date.

    Raises:
        SetrError: patches that are several frames deep.
    """
    weight = tensors[_PROJ]  # (C, bands, dates, p, p)
    if weight.shape[2] != 1:
        raise SetrError(
            f"embeds {weight.shape[2]} frames of a video at once, and encoders here read single "
            "images; choose weights of an image model"
        )
    found = {**tensors, _PROJ: weight[:, :, 0].contiguous()}
    if "pos_embed" in found:
        found["pos_embed"] = _first_date(found["pos_embed"])
    return found


def _first_date(positions: Tensor) -> Tensor:
    """Positions (1, 1 + N, C) of all dates -> (1, 1 + n, C) of the class token and the first."""
    table = positions[0, 1:]
    for dates in range(2, _MAX_DATES):
        n, rest = divmod(len(table), dates)
        if rest or round(n**0.5) ** 2 != n:
            continue
        if (table[:n] == table[n : 2 * n]).float().mean() >= _SHARED:
            return positions[:, : 1 + n].contiguous()
    return positions
