"""Whole-image, sliding-window and multi-scale prediction: tensors in, scores out, no file I/O.

Order of merging, stated once. Per scale and flip ("view"): the image is resized; each window's
logits are brought to the view's resolution, summed, and divided by how many windows cover a pixel
(blended windows are weighted by a pyramid that is lowest at their border); the result is resized to
the original image; softmax. Probabilities are then averaged over the views (mmsegmentation,
Segmenter and DINOv3 agree on this order). A single view's result stays logits; several give the
logarithm of their mean, so that softmax yields probabilities either way.

How it is computed: windows run in batches, and their logits are kept at the decoder's own scale.
The resizes happen for a block of rows at a time, when that block is asked for, and windows above it
are dropped; so scores of the whole image (28 GB for 8000x6000 pixels and 150 classes) need not
exist. Bilinear resizing is separable, so a block has the same values as the whole.

Shapes: B batch, H x W original image, K classes, "view" the resized image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from setr.kernels.best_class import best_class, best_upsampled
from setr.kernels.windows import Model, Pixels, Resized, View, resize_rows
from setr.processes.machine import HEAP
from setr.protocols import MULTI_SCALES, Protocol

__all__ = [
    "MULTI_SCALES",
    "NormalizedImages",
    "Protocol",
    "mask_blocks",
    "normalize",
    "predict_mask",
    "predict_scores",
]

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Scores held at once, in bytes of float32, besides the windows' own; on CPUs a block stays in the
cache, which makes the best class three times as fast to find."""


GPU_PIXELS = 1 << 22
"""Of the windows of one forward pass on a GPU, where that is more than eight."""


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 (B, H, W, C) -> float (B, C, H, W): (pixel / 255 - mean) / std."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    x = images.permute(0, 3, 1, 2).float()
    # not `new_tensor`, which waits until a GPU has done all it was given before
    factor, offset = (
        torch.tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)[:, None, None]
        for values in (scale, shift)
    )
    return x.mul_(factor).add_(offset)


class NormalizedImages:
    """Images uint8 (B, H, W, C) as `Pixels`: normalised where a window reads them.

    A large image then never exists in float32 as a whole.
    """

    def __init__(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.mean, self.std = images, mean, std
        B, H, W, channels = images.shape
        self.shape, self.device = (B, channels, H, W), images.device

    def __getitem__(self, place: tuple[Any, slice, slice]) -> Tensor:
        _, rows, columns = place
        return normalize(self.images[:, rows, columns], self.mean, self.std)


def predict_scores(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int | None = None,
) -> Tensor:
    """Scores of images under a protocol.

    Args:
        model: see `Model`.
        images: normalised images (B, C, H, W), or a source that reads them piece by piece.
        protocol: scales, flip and window.
        size: (H, W) of the result; the images' own by default.
        batch_windows: windows per forward pass; by default 2 on a CPU, which one window keeps busy
            and whose memory then stays low, and on a GPU 8, or more small ones.

    Returns:
        (B, K, H, W) float32, whose softmax over K is the class probabilities.
    """
    views = _views(model, images, protocol, batch_windows)
    blocks = list(_score_blocks(views, size or (images.shape[-2], images.shape[-1])))
    scores = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
    if not protocol.is_multi_scale:
        return scores
    return scores.clamp_(min=torch.finfo(scores.dtype).tiny).log_()


def predict_mask(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int | None = None,
    with_confidence: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Best class of every pixel, in memory that does not grow with K x H x W.

    Args:
        model: see `Model`.
        images: normalised images (B, C, H, W), or a source that reads them piece by piece.
        protocol: scales, flip and window.
        size: (H, W) of the result; the images' own by default.
        batch_windows: windows per forward pass; by default 2 on a CPU, which one window keeps busy
            and whose memory then stays low, and on a GPU 8, or more small ones.
        with_confidence: also compute the probabilities.

    Returns:
        Ids uint8 (B, H, W), and their probabilities float32 (B, H, W), 0 to 1, or None.

    Raises:
        SetrError: the model's scores are not numbers (NaN).
    """
    blocks = list(
        mask_blocks(
            model,
            images,
            protocol,
            size=size,
            batch_windows=batch_windows,
            with_confidence=with_confidence,
        )
    )
    ids = torch.cat([index for index, _ in blocks], dim=1)
    if not with_confidence:
        return ids, None
    return ids, torch.cat([sure for _, sure in blocks if sure is not None], dim=1)


def mask_blocks(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
    batch_windows: int | None = None,
    with_confidence: bool = True,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """What `predict_mask` returns, as blocks of rows from top to bottom.

    Args:
        model: see `Model`.
        images: normalised images (B, C, H, W), or a source that reads them piece by piece.
        protocol: scales, flip and window; one scale of 1 without flip where `columns` are given.
        size: (H, W) of the result; the images' own by default.
        columns: first column and the one after the last, to compute a vertical strip of the result
            with the windows of the whole; all by default.
        batch_windows: as in `predict_mask`.
        with_confidence: also compute the probabilities.

    Raises:
        SetrError: the model's scores are not numbers (NaN).
    """
    views = _views(model, images, protocol, batch_windows, columns)
    H, W = size or (images.shape[-2], images.shape[-1])
    if columns is not None:
        W = columns[1] - columns[0]
    if not with_confidence and (mask := _mask_of_one(views, (H, W))) is not None:
        yield mask, None
        return
    for block in _score_blocks(views, (H, W)):
        best, index = best_class(block)
        if with_confidence and not protocol.is_multi_scale:
            best = (block - best[:, None]).exp_().sum(dim=1).reciprocal_()
        yield index, best if with_confidence else None


def _views(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    batch_windows: int | None,
    columns: tuple[int, int] | None = None,
) -> list[View]:
    """The images at every scale, as they are and mirrored."""
    flips = (False, True)[: 1 + protocol.flip]
    batch_windows = batch_windows or _batch_windows(images, protocol)
    return [
        View(model, source, protocol, flip, batch_windows, columns)
        for source in _scaled(images, protocol)
        for flip in flips
    ]


def _batch_windows(images: Tensor | Pixels, protocol: Protocol) -> int:
    if images.device.type == "cpu":
        return 2
    height, width = protocol.window or images.shape[-2:]
    return max(8, GPU_PIXELS // (height * width))


def _mask_of_one(views: list[View], size: tuple[int, int]) -> Tensor | None:
    """Ids (B, H, W) where one window of one view is the whole result, on a CPU; else None."""
    view = views[0]
    if len(views) > 1 or view.size != size or view.device.type != "cpu":
        return None
    window = view.only_window()
    return best_upsampled(window.logits, window.padded, size) if window else None


def _score_blocks(views: list[View], size: tuple[int, int]) -> Iterator[Tensor]:
    """Consecutive blocks of rows (B, K, rows, W) float32, top to bottom.

    They hold logits for a single view, else mean probabilities.
    """
    (H, W), device, top = size, views[0].device.type, 0
    while top < H:
        K = views[0].num_classes
        limit = BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"])
        rows = max(8, limit // (4 * views[0].num_images * K * max(W, views[0].size[1])))
        bottom = min(H, top + rows)
        blocks = (resize_rows(view.rows, view.size, (H, W), top, bottom) for view in views)
        if len(views) == 1:
            yield next(blocks)
        else:
            total = next(blocks).softmax(dim=1)
            for block in blocks:
                total += block.softmax(dim=1)
            yield total.div_(len(views))
        if device == "cpu":
            HEAP.give_back()
        top = bottom


def _scaled(images: Tensor | Pixels, protocol: Protocol) -> Iterator[Tensor | Pixels]:
    """The images at each of the protocol's scales."""
    size = (images.shape[-2], images.shape[-1])
    for scale in protocol.scales:
        wanted = protocol.view_size(*size, scale)
        yield images if wanted == size else Resized(images, wanted)
