"""Fit the weights of encoders with a relative position bias to a model.

Files of timm and of Microsoft (microsoft/unilm, beit and beit2) have the same names but for the
bias that all blocks share in Microsoft's pretrained files. Plain ViTs fit, too: an MAE, for
example, which mmsegmentation fine-tunes with a bias that starts at zero.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr.errors import UsageError
from setr.weight_files.naming import Tensors
from setr.weight_files.stored_grid import shape_of

TABLE = "relative_position_bias_table"
_SHARED = f"rel_pos_bias.{TABLE}"


def spread_shared_table(tensors: Tensors) -> Tensors:
    """Give every block the table that all share, and leave out the index made for one grid."""
    tensors = without_pairs(tensors)
    if (shared := tensors.pop(_SHARED, None)) is not None:
        blocks = {m[0] for name in tensors if (m := re.match(r"blocks\.\d+\.", name))}
        tensors |= {f"{block}attn.{TABLE}": shared for block in blocks}
    return tensors


def without_pairs(tensors: Tensors) -> Tensors:
    """The tensors without the index of pairs that attention layers store for one grid."""
    return {n: v for n, v in tensors.items() if not n.endswith("relative_position_index")}


def drop_key_bias(tensors: Tensors) -> None:
    """Leave out the key's bias in blocks that have a table (mmsegmentation's MAE)."""
    for name in [n for n in tensors if n.endswith(f".attn.{TABLE}")]:
        if (joint := f"{name.removesuffix(TABLE)}qkv.bias") in tensors:
            part_bias(tensors, joint)


def split_qkv_bias(given: Tensors, own: Tensors) -> None:
    """Leave out the key's bias where the model has none, which does not change the attention.

    It adds the same to all scores of a query.
    """
    for name in [n for n in given if n.endswith(".attn.qkv.bias") and n not in own]:
        if f"{name.removesuffix('qkv.bias')}q_bias" in own:
            part_bias(given, name)


def part_bias(tensors: Tensors, name: str) -> None:
    """Part the joint bias of an attention layer into those of query and value."""
    stem = name.removesuffix("qkv.bias")
    tensors[f"{stem}q_bias"], _, tensors[f"{stem}v_bias"] = tensors.pop(name).chunk(3)


def fill_plain(given: Tensors, own: Tensors) -> list[str]:
    """Complete the blocks of a plain ViT: no bias is a bias of 0, no layer scale one of 1.

    Returns:
        Names of the tensors that were added.
    """
    tables = [name for name in own if name.endswith(f".attn.{TABLE}")]
    plain = all("encoder.vit.pos_embed" in tensors for tensors in (given, own))
    if not plain or any(name in given for name in tables):
        return []
    filled = []
    for name in own if tables else ():
        found = re.match(rf"(encoder\.vit\.blocks\.\d+\.)(attn\.{TABLE}|gamma_[12])$", name)
        if found and name not in given and f"{found[1]}attn.proj.weight" in given:
            given[name] = (torch.ones_like if "gamma" in name else torch.zeros_like)(own[name])
            filled.append(name)
    return filled


def fit_table(
    name: str,
    value: Tensor,
    own: Tensor,
    grid: tuple[int, int],
    source: str,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Resample a table to the model's patch grid, as the authors do before fine-tuning.

    Offsets near zero keep their values, distant ones are stretched: the old offsets are placed at
    0, ±1, ±(1 + q), ±(1 + q + q^2), …, with a q that makes the last one that of the new grid
    (microsoft/unilm, beit/run_class_finetuning.py; linear between them, as in timm). Only tables of
    square grids can be resampled, and of a known image size.

    Args:
        name: of the table, for error messages.
        value: the table.
        own: the model's.
        grid: patch grid (h, w) of the model's.
        source: name of the file, for error messages.
        size: image size (height, width) that the table is for, if known.

    Raises:
        SetrError: the table of a grid that is not square.
    """
    if value.ndim != 2 or value.shape[1] != own.shape[1]:
        return value
    offsets_of_grid = (2 * grid[0] - 1, 2 * grid[1] - 1)
    special = len(own) - offsets_of_grid[0] * offsets_of_grid[1]  # rows of the class token: 3 or 0
    count = len(value) - special
    side = round(max(0, count) ** 0.5)
    sides = shape_of(count, size) if size is not None and count > 0 else (side, side)
    if sides == offsets_of_grid or (value.shape == own.shape and size is None):
        return value
    if sides[0] * sides[1] != count or any(n % 2 == 0 or n < 3 for n in sides):
        raise UsageError(
            f"{source}: {name} has {len(value)} rows, which belong to no square grid; build the "
            "model with the img_size it was trained at"
        )
    offsets = value[:count].double().unflatten(0, sides)
    down, across = (_weights(old, new) for old, new in zip(sides, offsets_of_grid, strict=True))
    fitted = torch.einsum("ya,xb,abm->yxm", down, across, offsets).flatten(0, 1)
    return torch.cat([fitted.to(value.dtype), value[count:]])


def _weights(old: int, new: int) -> Tensor:
    """Weights (new, old) that resample one axis of a table; odd numbers of offsets."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q ** (old // 2)) / (1 - q) > new // 2 else (q, high)
    far = np.cumsum(q ** np.arange(old // 2))
    known = np.concatenate([-far[::-1], [0], far])
    wanted = np.arange(new) - new // 2
    columns = [np.interp(wanted, known, one) for one in np.eye(old)]
    return torch.from_numpy(np.stack(columns, axis=1))


def relative_encoder(t: Tensors) -> dict[str, Any]:
    """Keyword arguments of a BEiT encoder that its tensors show."""
    return {
        "use_abs_pos_emb": "encoder.vit.pos_embed" in t,
        "qkv_bias": "encoder.vit.blocks.0.attn.q_bias" in t,
        "init_values": 0.1 if "encoder.vit.blocks.0.gamma_1" in t else None,
    }


def relative_taps(depth: int) -> tuple[int, ...]:
    """The blocks that UPerNet reads in mmsegmentation's settings for BEiT and MAE.

    Of 12 blocks 4, 6, 8 and 12, of 24 twice as many; of others in proportion.
    """
    return tuple(depth * share // 6 for share in (2, 3, 4, 6))
