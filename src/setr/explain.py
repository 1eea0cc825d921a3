"""Attention maps, features per layer, and position embeddings of a model (Figures 5 and 6).

Attention runs as one fused kernel that does not return its weights. Here the queries and keys given
to this kernel are captured in the requested layers, after norms and rotary embeddings, and the
softmax is computed again from them. This works for every timm ViT, including EVA, without a second
implementation of any of them.

Blocks that attend in windows (SAM) have weights only inside the patch's window; elsewhere their
maps are 0.

Shapes: C channels of the image, or width of the encoder; h x w patch grid, N tokens with prefix
tokens, n tokens of a window or all N, M heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from setr.errors import USAGE, SetrError
from setr.layers.positions import grid_positions, resample_grid
from setr.model import SETR

MAX_TOKENS = 20_000
"""Above this many patches attention maps are refused: a full map would take gigabytes."""
MAX_SIDE = 64
"""Positions along the longer side of a grid whose similarities are computed."""
ROLLOUT_ROWS = 512
"""Rows of a head's weights that rollout holds at once: 40 MB at most, as fast as all of them."""


class Caught(NamedTuple):
    """What the attention scores of a layer are computed from.

    Attributes:
        query: (B * windows, M, n, d) float32.
        key: the same.
        scale: factor of their product.
        bias: relative position bias (B, M, n, n) float32 that is added to it, if the encoder has
            one.
        places: (windows, n) the token in each place of a window, -1 for padding. Where attention is
            global, one window holds all tokens.
    """

    query: Tensor
    key: Tensor
    scale: float
    bias: Tensor | None
    places: Tensor

    def scores(self, window: int, head: int | slice, rows: slice) -> Tensor:
        """(rows, n) scores before the softmax of a head in a window, or (M, rows, n) of all heads.

        Windows are counted through the batch.
        """
        key = self.key[window, head].transpose(-2, -1)
        scores = self.query[window, head][..., rows, :] @ key * self.scale
        return scores if self.bias is None else scores + self.bias[window, head][..., rows, :]

    def weights(self, token: int) -> Tensor:
        """(M, N) attention of a token of the first image to all tokens."""
        window, place = (self.places == token).nonzero()[0].tolist()
        found = self.scores(window, slice(None), slice(place, place + 1)).softmax(dim=-1)[:, 0]
        spread = found.new_zeros(len(found), self.num_tokens + 1)  # -1, the padding, is cut off
        spread[:, self.places[window]] = found
        return spread[:, :-1]

    @property
    def num_tokens(self) -> int:
        """Number of tokens N of an image."""
        return int(self.places.max()) + 1


class _Catcher(TorchFunctionMode):
    """Captures the queries and keys of the fused attention of one layer while it is active."""

    def __init__(self, layer: int, caught: dict[int, Caught], places: Tensor | None) -> None:
        super().__init__()
        self.layer, self.caught, self.places = layer, caught, places

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[0], args[1]
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            if key.shape[1] != query.shape[1]:  # grouped queries share keys
                key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            bias = kwargs.get("attn_mask")
            bias = None if bias is None else bias.float().expand(len(query), *bias.shape[1:])
            places = self.places
            if places is None:
                places = torch.arange(query.shape[-2], device=query.device)[None]
            self.caught[self.layer] = Caught(query.float(), key.float(), scale, bias, places)
        return func(*args, **kwargs)


def catch_attention(model: SETR, images: Tensor, layers: Sequence[int]) -> dict[int, Caught]:
    """Run the encoder and capture the queries and keys of some layers.

    Args:
        model: a model with a ViT encoder.
        images: normalised images (B, C, H, W).
        layers: block numbers from 1.

    Returns:
        What was caught, per layer.

    Raises:
        SetrError: no ViT, no such layer, blocks without plain attention, too many patches.
    """
    blocks = _blocks(model, layers)
    h, w = grid_size(model, images)
    if h * w > MAX_TOKENS:
        raise SetrError(
            f"{images.shape[-1]}x{images.shape[-2]} pixels are {h * w} patches, more than "
            f"{MAX_TOKENS}; use a smaller --short-side",
            code=USAGE,
        )
    caught: dict[int, Caught] = {}
    with ExitStack() as stack:
        for layer in layers:
            attn: Any = getattr(blocks[layer - 1], "attn", None)
            if hasattr(attn, "fused_attn"):
                places = attn.places((h, w)) if hasattr(attn, "places") else None
                stack.enter_context(_active_inside(attn, _Catcher(layer, caught, places)))
        model.encoder(images)
    missing = [layer for layer in layers if layer not in caught]
    if missing:
        raise SetrError(f"layer {missing[0]} has no plain attention that could be shown")
    return caught


@contextmanager
def _active_inside(attn: Any, catcher: _Catcher) -> Iterator[None]:
    """Make an attention module call the fused kernel, with the catcher active while it runs.

    Only while it runs: modes are asked from the innermost out, and those of `cpu_blocks`, which are
    active around the whole block, would answer the call themselves.
    """

    def enter(*_: Any) -> None:
        catcher.__enter__()

    def leave(*_: Any) -> None:
        catcher.__exit__(None, None, None)

    before, attn.fused_attn = attn.fused_attn, True
    hooks = (
        attn.register_forward_pre_hook(enter),
        attn.register_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        attn.fused_attn = before


def attention_maps(
    model: SETR, images: Tensor, layers: Sequence[int], point: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Attention of one patch to all patches: per layer (M, h, w), one map for each head.

    A map sums to 1 minus the weight of the prefix tokens, and of the padding of windows.

    Args:
        model: a model with a ViT encoder.
        images: one normalised image (1, C, H, W).
        layers: block numbers from 1.
        point: row and column of the patch in the grid.

    Raises:
        SetrError: as `catch_attention`, or a point outside the grid.
    """
    h, w = grid_size(model, images)
    if not (0 <= point[0] < h and 0 <= point[1] < w):
        raise SetrError(f"patch {point}: the grid has {h} rows and {w} columns", code=USAGE)
    maps = {}
    for layer, caught in catch_attention(model, images, layers).items():
        weights = caught.weights(caught.num_tokens - h * w + point[0] * w + point[1])
        maps[layer] = weights[:, -h * w :].reshape(-1, h, w).cpu().numpy()
    return maps


def attention_rollout(
    model: SETR,
    images: Tensor,
    point: tuple[int, int],
    *,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Attention of a patch followed back through all layers (Abnar and Zuidema, ACL 2020): (h, w).

    Per layer the mean over heads and the identity (the residual path) count half each. The N x N
    weights of a head exist `ROLLOUT_ROWS` rows at a time.

    Args:
        model: a model with a ViT encoder.
        images: one normalised image (1, C, H, W).
        point: row and column of the patch in the grid.
        check: called before each of these blocks; whatever it raises ends the computation.

    Raises:
        SetrError: as `catch_attention`.
    """
    h, w = grid_size(model, images)
    layers = range(len(_blocks(model, ())), 0, -1)
    caught = catch_attention(model, images, layers)
    flow: Tensor | None = None
    for layer in layers:
        found = caught.pop(layer)
        _, heads, length, _ = found.query.shape
        if flow is None:
            flow = found.query.new_zeros(found.num_tokens + 1)  # -1, the padding, passes nothing on
            flow[found.num_tokens - h * w + point[0] * w + point[1]] = 1.0
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
        SetrError: no ViT or no such layer.
    """
    _blocks(model, layers)
    ordered = sorted(set(layers))
    vit: Any = model.encoder.vit
    maps = vit.forward_intermediates(
        images, indices=[layer - 1 for layer in ordered], intermediates_only=True
    )
    return {layer: m[0].float().cpu().numpy() for layer, m in zip(ordered, maps, strict=True)}


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
        SetrError: the encoder has none, for example because its positions are rotary.
    """
    _blocks(model, ())
    vit: Any = model.encoder.vit
    embedding = grid_positions(vit)
    if embedding is None:
        raise SetrError(
            "this encoder has no position embedding to show; its positions are rotary or relative"
        )
    h, w = grid = vit.patch_embed.grid_size
    if max(grid) > MAX_SIDE:
        h, w = (max(1, round(n * MAX_SIDE / max(grid))) for n in grid)
        embedding = resample_grid(embedding, grid, (h, w), mode="bilinear")
    tokens = F.normalize(embedding[0].detach().float(), dim=1)
    return (tokens @ tokens.T).reshape(h, w, h, w).cpu().numpy()


def grid_size(model: SETR, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of an image."""
    p = model.encoder.patch_size
    return -(-images.shape[-2] // p), -(-images.shape[-1] // p)


def _blocks(model: SETR, layers: Sequence[int]) -> Any:
    """The encoder's blocks, after checking that it is a ViT and has these layers."""
    blocks = getattr(getattr(model.encoder, "vit", None), "blocks", None)
    if blocks is None:
        raise SetrError("this model's encoder is no vision transformer: it has no attention")
    wrong = [layer for layer in layers if not 1 <= layer <= len(blocks)]
    if wrong:
        raise SetrError(
            f"layer {wrong[0]}: this model's blocks are numbered 1 to {len(blocks)}", code=USAGE
        )
    return blocks
