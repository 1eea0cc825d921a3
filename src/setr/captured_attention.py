"""Captures the queries and keys of attention, from which its weights can be computed.

Attention runs as one fused kernel that does not return its weights. Here the queries and keys given
to this kernel are captured in the requested layers, after norms and rotary embeddings, and the
softmax is computed again from them. This works for every timm ViT, including EVA, without a second
implementation of any of them.

Shapes: C channels of the image; N tokens with prefix tokens and EoMT's queries, n tokens of a
window or all N, d channels of a head, M heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from setr.errors import UsageError
from setr.model import SETR

MAX_TOKENS = 20_000
"""Above this many patches attention maps are refused: a full map would take gigabytes."""


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
        UsageError: no ViT, no such layer, blocks without plain attention, too many patches.
    """
    blocks = blocks_of(model, layers)
    h, w = model.encoder.grid(images)
    if h * w > MAX_TOKENS:
        raise UsageError(
            f"{images.shape[-1]}x{images.shape[-2]} pixels are {h * w} patches, more than "
            f"{MAX_TOKENS}; use a smaller --short-side"
        )
    caught: dict[int, Caught] = {}
    with ExitStack() as stack:
        stack.enter_context(_unmerged(model))
        for layer in layers:
            attn: Any = getattr(blocks[layer - 1], "attn", None)
            if hasattr(attn, "fused_attn"):
                places = attn.places((h, w)) if hasattr(attn, "places") else None
                stack.enter_context(_active_inside(attn, _Catcher(layer, caught, places)))
        model.encode(images)
    missing = [layer for layer in layers if layer not in caught]
    if missing:
        raise UsageError(f"layer {missing[0]} has no plain attention that could be shown")
    return caught


@contextmanager
def _unmerged(model: SETR) -> Iterator[None]:
    """Context in which no tokens are merged, so that every patch has its own attention."""
    share = model.arguments["merge_tokens"]
    if share:
        model.set_merge_tokens(0.0)
    try:
        yield
    finally:
        if share:
            model.set_merge_tokens(share)


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


def blocks_of(model: SETR, layers: Sequence[int]) -> Any:
    """The encoder's blocks, which include those of these numbers, from 1.

    Raises:
        UsageError: it is no ViT, or lacks one of them.
    """
    blocks = getattr(getattr(model.encoder, "vit", None), "blocks", None)
    if blocks is None:
        raise UsageError("this model's encoder is no vision transformer: it has no attention")
    wrong = [layer for layer in layers if not 1 <= layer <= len(blocks)]
    if wrong:
        raise UsageError(f"layer {wrong[0]}: this model's blocks are numbered 1 to {len(blocks)}")
    return blocks
