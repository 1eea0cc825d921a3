"""Whole-image, sliding-window and multi-scale prediction: tensors in, scores out, no file I/O.

Order of merging, stated once. Per scale and flip ("view"): the image is resized; each window's
logits are brought to the view's resolution, summed, and divided by how many windows cover a pixel;
the result is resized to the original image; softmax. Probabilities are then averaged over the
views (mmsegmentation, Segmenter and DINOv3 agree on this order). A single view's result stays
logits; several give the logarithm of their mean, so that softmax yields probabilities either way.

How it is computed: windows run in batches, and their logits are kept at the decoder's own scale.
The resizes happen for a block of rows at a time, when that block is asked for, and windows above it
are dropped; so scores of the whole image (28 GB for 8000x6000 pixels and 150 classes) need not
exist. Bilinear resizing is separable, so a block has the same values as the whole.

Shapes: B batch, H x W original image, K classes, "view" the resized image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.errors import SetrError
from setr.protocols import MULTI_SCALES, Protocol
from setr.row_blocks import source_rows

__all__ = ["MULTI_SCALES", "Protocol", "normalize", "predict_mask", "predict_scores"]

Model = Callable[[Tensor], Any]
"""Normalised images (b, 3, h, w) -> logits (b, K, h, w). A `SETR` gives them un-resized by its
method `coarse`, which saves most of the memory."""

BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""Scores held at once, in bytes of float32, besides the windows' own; on CPUs a block stays in the
cache, which makes the best class three times as fast to find."""


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 RGB (B, H, W, 3) -> float (B, 3, H, W), mean 0 and deviation 1."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    x = images.permute(0, 3, 1, 2).float()
    return x.mul_(x.new_tensor(scale)[:, None, None]).add_(x.new_tensor(shift)[:, None, None])


def predict_scores(
    model: Model,
    images: Tensor,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int | None = None,
) -> Tensor:
    """Scores of images under a protocol.

    Args:
        model: see `Model`.
        images: normalised images (B, 3, H, W).
        protocol: scales, flip and window.
        size: (H, W) of the result; the images' own by default.
        batch_windows: windows per forward pass; by default 8 on a GPU, and 2 on a CPU, which one
            window keeps busy and whose memory then stays low.

    Returns:
        (B, K, H, W) float32, whose softmax over K is the class probabilities.
    """
    blocks = list(_score_blocks(model, images, protocol, size, batch_windows))
    scores = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
    if not protocol.is_multi_scale:
        return scores
    return scores.clamp_(min=torch.finfo(scores.dtype).tiny).log_()


def predict_mask(
    model: Model,
    images: Tensor,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int | None = None,
    with_confidence: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Best class of every pixel, in memory that does not grow with K x H x W.

    Args:
        model: see `Model`.
        images: normalised images (B, 3, H, W).
        protocol: scales, flip and window.
        size: (H, W) of the result; the images' own by default.
        batch_windows: windows per forward pass; by default 8 on a GPU, and 2 on a CPU, which one
            window keeps busy and whose memory then stays low.
        with_confidence: also compute the probabilities.

    Returns:
        Ids uint8 (B, H, W), and their probabilities float32 (B, H, W), 0 to 1, or None.

    Raises:
        SetrError: the model's scores are not numbers (NaN).
    """
    ids, confidences = [], []
    for block in _score_blocks(model, images, protocol, size, batch_windows):
        best, index = best_class(block)
        if best.isnan().any():
            raise SetrError(
                "the model's scores are not numbers (NaN); its weights are broken, or the "
                "precision is too low: try fp32"
            )
        ids.append(index)
        if with_confidence and not protocol.is_multi_scale:
            best = (block - best[:, None]).exp_().sum(dim=1).reciprocal_()
        confidences.append(best)
    return torch.cat(ids, dim=1), torch.cat(confidences, dim=1) if with_confidence else None


def best_class(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score and its class, the first of equals: (B, K, H, W) -> (B, H, W), uint8 (B, H, W).

    On CPUs `max(dim=1)` walks across memory and keeps 64-bit indices; the largest score and then a
    comparison per class, both in vector registers, take a third of its time.
    """
    if scores.device.type != "cpu":
        best, index = scores.max(dim=1)
        return best, index.to(torch.uint8)
    best, K = scores.amax(dim=1), scores.shape[1]
    rank = torch.zeros(best.shape, dtype=torch.uint8)  # K - class; 0 where the score is NaN
    for k in range(K):
        equal = (scores[:, k] == best).view(torch.uint8)
        torch.maximum(rank, equal.mul_(K - k), out=rank)
    return best, K - rank


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Start positions that cover `length` pixels; the last window is moved back to the edge."""
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def _score_blocks(
    model: Model,
    images: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None,
    batch_windows: int | None,
) -> Iterator[Tensor]:
    """Consecutive blocks of rows (B, K, rows, W) float32, top to bottom.

    They hold logits for a single view, else mean probabilities.
    """
    H, W = size or (images.shape[-2], images.shape[-1])
    flips = (False, True)[: 1 + protocol.flip]
    batch_windows = batch_windows or (2 if images.device.type == "cpu" else 8)
    views = [
        _View(model, images, protocol, scale, flip, batch_windows)
        for scale in protocol.scales
        for flip in flips
    ]
    top = 0
    while top < H:
        K = views[0].num_classes
        limit = BLOCK_BYTES.get(images.device.type, BLOCK_BYTES["cuda"])
        rows = max(8, limit // (4 * images.shape[0] * K * max(W, views[0].size[1])))
        bottom = min(H, top + rows)
        blocks = (
            _resize_rows(view.rows, view.size, (H, W), top, bottom, images.device) for view in views
        )
        if len(views) == 1:
            yield next(blocks)
        else:
            total = next(blocks).softmax(dim=1)
            for block in blocks:
                total += block.softmax(dim=1)
            yield total.div_(len(views))
        top = bottom


class _View:
    """Merged logits of one scale and flip, computed from the top down as rows are asked for."""

    def __init__(
        self,
        model: Model,
        images: Tensor,
        protocol: Protocol,
        scale: float,
        flip: bool,
        batch_windows: int,
    ) -> None:
        H, W = images.shape[-2:]
        self.size = protocol.view_size(H, W, scale)
        view = images
        if self.size != (H, W):
            view = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        self.images = view.flip(-1) if flip else view
        self.model, self.flip, self.batch = model, flip, batch_windows
        window = protocol.window or self.size
        stride = protocol.stride or window
        self.window = min(window[0], self.size[0]), min(window[1], self.size[1])
        self.tops, self.lefts = (
            window_starts(length, w, s)
            for length, w, s in zip(self.size, self.window, stride, strict=True)
        )
        self.live: list[_Window] = []
        self.num_rows = 0  # rows of windows computed so far

    @property
    def num_classes(self) -> int:
        if not self.live:
            self._compute()
        return self.live[0].logits.shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        """Merged logits (B, K, last - first, W') float32; later calls may not start higher."""
        self.live = [w for w in self.live if w.top + self.window[0] > first]
        while self.num_rows < len(self.tops) and self.tops[self.num_rows] < last:
            for window in self.live:
                window.forget_above(first)
            self._compute()
        if len(self.tops) * len(self.lefts) == 1:
            merged = self.live[0].rows(first, last)
        else:
            merged = self._merge(first, last)
        return merged.flip(-1) if self.flip else merged

    def _merge(self, first: int, last: int) -> Tensor:
        wh, ww = self.window
        B, K = self.live[0].logits.shape[:2]
        total = self.images.new_zeros(B, K, last - first, self.size[1], dtype=torch.float32)
        for window in self.live:
            a, b = max(first, window.top), min(last, window.top + wh)
            if a < b:
                part = window.rows(a - window.top, b - window.top)
                total[:, :, a - first : b - first, window.left : window.left + ww] += part
        down = self._coverage(self.tops, wh, first, last)
        across = self._coverage(self.lefts, ww, 0, self.size[1])
        return total.div_(down[:, None] * across)

    def _coverage(self, starts: list[int], length: int, first: int, last: int) -> Tensor:
        """How many windows cover each of the positions first .. last-1 along one axis."""
        position = torch.arange(first, last, device=self.images.device)[:, None]
        start = torch.tensor(starts, device=self.images.device)
        inside = (position >= start) & (position < start + length)
        return inside.sum(dim=1).float()

    def _compute(self) -> None:
        """Run the next row of windows, or as many rows as fit into one batch."""
        wh, ww = self.window
        B = self.images.shape[0]
        per_call = max(1, self.batch // B)
        num = max(1, per_call // len(self.lefts))
        tops = self.tops[self.num_rows : self.num_rows + num]
        self.num_rows += len(tops)
        places = [(top, left) for top in tops for left in self.lefts]
        for start in range(0, len(places), per_call):
            chunk = places[start : start + per_call]
            crops = [self.images[..., y : y + wh, x : x + ww] for y, x in chunk]
            logits, size = _coarse_logits(self.model, crops[0] if len(crops) == 1 else _cat(crops))
            for (top, left), part in zip(chunk, logits.split(B), strict=True):
                self.live.append(_Window(top, left, part, size, self.window))


def _cat(crops: list[Tensor]) -> Tensor:
    return torch.cat(crops)


class _Window:
    """Logits of one window at the decoder's scale."""

    def __init__(
        self, top: int, left: int, logits: Tensor, padded: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self.top, self.left = top, left
        self.logits = logits
        self.height = logits.shape[-2]
        self.padded, self.size = padded, size  # in pixels; the logits cover the padded size
        self.first = 0  # row of the full logits that `logits` begins with

    def rows(self, first: int, last: int) -> Tensor:
        """Logits (B, K, last - first, window width) float32 at the view's resolution."""
        source = (self.height, self.logits.shape[-1])
        device = self.logits.device
        rows = _resize_rows(self._fetch, source, self.padded, first, last, device)
        return rows[..., : self.size[1]]

    def forget_above(self, row: int) -> None:
        """Free the logits that only rows of the view above `row` need."""
        if row <= self.top:
            return
        at = row - self.top
        lower, _, _ = source_rows(at, at + 1, self.height, self.padded[0], self.logits)
        first = int(lower)
        if first > self.first:
            self.logits = self.logits[..., first - self.first :, :].clone()
            self.first = first

    def _fetch(self, first: int, last: int) -> Tensor:
        return self.logits[..., first - self.first : last - self.first, :].float()


def _coarse_logits(model: Model, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Logits at any scale, and the size in pixels they cover."""
    if hasattr(model, "coarse"):
        output = model.coarse(images)
        return output.logits, output.size
    return model(images), (images.shape[-2], images.shape[-1])


def _resize_rows(
    fetch: Callable[[int, int], Tensor],
    source: tuple[int, int],
    target: tuple[int, int],
    first: int,
    last: int,
    device: torch.device,
) -> Tensor:
    """Rows first .. last-1 of a bilinear resize (align_corners=False) from source to target size.

    Args:
        fetch: (first, last) -> those rows of the source map, float32.
        source: (h, w) of the map.
        target: (H, W) after the resize.
        first: first row wanted.
        last: row after the last.
        device: of the map.
    """
    if source[0] == target[0]:
        rows = fetch(first, last)
    else:
        like = torch.empty(0, device=device)
        lower, upper, share = source_rows(first, last, source[0], target[0], like)
        top = int(lower[0])
        block = fetch(top, int(upper[-1]) + 1)
        lower, upper = lower.long() - top, upper.long() - top
        rows = torch.lerp(block[..., lower, :], block[..., upper, :], share[:, None])
    if source[1] != target[1]:
        rows = F.interpolate(rows, (last - first, target[1]), mode="bilinear", align_corners=False)
    return rows
