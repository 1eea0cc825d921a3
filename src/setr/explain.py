"""Attention maps, features per layer, and position embeddings of a model (Figures 5 and 6).

Blocks that attend in windows (SAM) have weights only inside the patch's window; elsewhere their
maps are 0.

Shapes: C channels of the image, or width of the encoder; h x w patch grid, N tokens with prefix
tokens and EoMT's queries, M heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from setr.captured_attention import blocks_of, catch_attention
from setr.errors import UsageError
from setr.layers.positions import grid_positions, resample_grid
from setr.model import SETR

MAX_SIDE = 64
"""Positions along the longer side of a grid whose similarities are computed."""
ROLLOUT_ROWS = 512
"""Rows of a head's weights that rollout holds at once: 40 MB at most, as fast as all of them."""


def attention_maps(
    model: SETR, images: Tensor, layers: Sequence[int], point: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Attention of one patch to all patches: per layer (M, h, w), one map for each head.

    A map sums to 1 minus the weight of prefix tokens and queries, and of the padding of windows.

    Args:
        model: a model with a ViT encoder.
        images: one normalised image (1, C, H, W).
        layers: block numbers from 1.
        point: row and column of the patch in the grid.

    Raises:
        UsageError: as `catch_attention`, or a point outside the grid.
    """
    h, w = model.encoder.grid(images)
    if not (0 <= point[0] < h and 0 <= point[1] < w):
        raise UsageError(f"patch {point}: the grid has {h} rows and {w} columns")
    maps = {}
    for layer, caught in catch_attention(model, images, layers).items():
        weights = caught.weights(caught.num_tokens - h * w + point[0] * w + point[1])
        maps[layer] = weights[:, -h * w :].reshape(-1, h, w).cpu().numpy()
    return maps


def attention_rollout(
    model: SETR, images: Tensor, point: tuple[int, int], *, check: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Attention of a patch followed back through all layers (Abnar and Zuidema, ACL 2020): (h, w).

    Per layer the mean over heads and the identity (the residual path) count half each. What reaches
    EoMT's queries where they join the patches ends there. The N x N weights of a head exist
    `ROLLOUT_ROWS` rows at a time.

    Args:
        model: a model with a ViT encoder.
        images: one normalised image (1, C, H, W).
        point: row and column of the patch in the grid.
        check: called before each of these blocks; whatever it raises ends the computation.

    Raises:
        UsageError: as `catch_attention`.
    """
    h, w = model.encoder.grid(images)
    layers = range(len(blocks_of(model, ())), 0, -1)
    caught = catch_attention(model, images, layers)
    flow: Tensor | None = None
    for layer in layers:
        found = caught.pop(layer)
        _, heads, length, _ = found.query.shape
        if flow is None:
            flow = found.query.new_zeros(found.num_tokens + 1)  # -1, the padding, passes nothing on
            flow[found.num_tokens - h * w + point[0] * w + point[1]] = 1.0
        flow = flow[-found.num_tokens - 1 :]  # queries, the first tokens, join at a later layer
        mixed = torch.zeros_like(flow)
        for window, places in enumerate(found.places):
            for head in range(heads):
                for top in range(0, length, ROLLOUT_ROWS):
                    check()
                    rows = slice(top, top + ROLLOUT_ROWS)
                    weights = found.scores(window, head, rows).softmax(dim=-1)
                    mixed[places] += flow[places[rows]] @ weights
        flow = 0.5 * flow + 0.5 * mixed / heads
        flow[-1] = 0.0
    assert flow is not None
    return flow[-h * w - 1 : -1].reshape(h, w).cpu().numpy()


def saturated(values: np.ndarray) -> np.ndarray:
    """Attention scaled so that its largest 0.5 % are 1 or more; outliers would dim the rest."""
    return values / max(float(np.quantile(values, 0.995)), 1e-12)


def layer_features(model: SETR, images: Tensor, layers: Sequence[int]) -> dict[int, np.ndarray]:
    """Outputs of blocks as maps (C, h, w) (Figure 5).

    Raises:
        UsageError: no ViT or no such layer.
    """
    blocks, (h, w) = blocks_of(model, layers), model.encoder.grid(images)
    found: dict[int, np.ndarray] = {}
    with ExitStack() as stack:
        for layer in sorted(set(layers)):

            def keep(_: Any, inputs: Any, tokens: Tensor, layer: int = layer) -> None:
                patches = tokens.flatten(1, -2)[0, -h * w :]  # prefix tokens and queries are first
                found[layer] = patches.T.reshape(-1, h, w).float().cpu().numpy()

            stack.callback(blocks[layer - 1].register_forward_hook(keep).remove)
        model.encode(images)
    return found


def principal_colours(features: np.ndarray) -> np.ndarray:
    """(C, h, w) -> (h, w, 3) in 0 to 1: the three principal components as red, green, blue.

    Each is stretched from its 2nd to its 98th percentile. Its sign, arbitrary in a decomposition,
    is chosen so that the largest entry of the axis is positive.
    """
    C, h, w = features.shape
    tokens = features.reshape(C, -1).T.astype(np.float64)
    tokens = tokens - tokens.mean(axis=0)
    _, _, axes = np.linalg.svd(tokens, full_matrices=False)
    axes = axes[:3]
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    values = tokens @ (axes * np.sign(largest)[:, None]).T
    if values.shape[1] < 3:
        values = np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
    return np.stack([stretch(v) for v in values.T], axis=-1).reshape(h, w, 3)


def strongest_channels(features: np.ndarray, count: int) -> list[tuple[int, np.ndarray]]:
    """The channels that vary most over the image: [(number, (h, w) in 0 to 1)]."""
    order = np.argsort(-features.reshape(len(features), -1).std(axis=1))[:count]
    return [(int(c), stretch(features[c])) for c in order]


def stretch(values: np.ndarray) -> np.ndarray:
    """Values scaled so that their 2nd percentile is 0 and their 98th is 1, clipped."""
    low, high = np.percentile(values, [2, 98])
    return np.asarray(np.clip((values - low) / max(high - low, 1e-12), 0, 1))


def position_similarity(model: SETR) -> np.ndarray:
    """Cosine similarity between the position embeddings of patches: (h, w, h, w), -1 to 1.

    A grid with a longer side than `MAX_SIDE` (RADIO's has 128) is resampled to that first.

    Raises:
        UsageError: the encoder has none, for example because its positions are rotary.
    """
    blocks_of(model, ())
    vit: Any = model.encoder.vit
    embedding = grid_positions(vit)
    if embedding is None:
        raise UsageError(
            "this encoder has no position embedding to show; its positions are rotary or relative"
        )
    h, w = grid = vit.patch_embed.grid_size
    if max(grid) > MAX_SIDE:
        h, w = (max(1, round(n * MAX_SIDE / max(grid))) for n in grid)
        embedding = resample_grid(embedding, grid, (h, w), mode="bilinear")
    tokens = F.normalize(embedding[0].detach().float(), dim=1)
    return (tokens @ tokens.T).reshape(h, w, h, w).cpu().numpy()
