"""Whole-image, sliding-window and multi-scale prediction: tensors in, scores out, no file I/O.

Order of merging. For each scale and flip (a "view"): the image is resized; each window's logits are
resized to the view's resolution, summed, and divided by the number of windows that cover each pixel
(with blending, windows are weighted by a pyramid that is lowest at their border); the result is
resized to the original image; softmax. Probabilities are then averaged over the views
(mmsegmentation, Segmenter and DINOv3 use the same order). A single view returns logits; several
return the logarithm of the mean probabilities, so that softmax gives probabilities in both cases.

Windows run in batches, and their logits are kept at the decoder's resolution. They are resized for
one block of rows at a time, and windows above it are freed, so the scores of the whole image (28 GB
for 8000x6000 pixels and 150 classes) need not be in memory. Bilinear resizing is separable, so
blocks have the same values as the whole.

Shapes: B batch, H x W original image, K classes, "view" the resized image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from setr.errors import UsageError
from setr.kernels.best_class import best_class, best_upsampled
from setr.kernels.windows import Model, Pixels, Resized, View, resize_rows
from setr.processes.machine import HEAP
from setr.protocols import Protocol

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Size of a block of scores in float32 bytes; on CPUs it fits the cache, which makes argmax three
times as fast."""

OnScores = Callable[[int, Tensor], None]
"""Takes the first row of a block of scores, and the block (B, K, rows, W)."""

GPU_PIXELS = 1 << 22
"""Pixels in one forward pass on a GPU, which has at least eight windows."""


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 (B, H, W, C) -> float (B, C, H, W): (pixel / 255 - mean) / std.

    Raises:
        SetrError: images of another type or shape, as floats from 0 to 1, or channels first.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != len(mean):
        raise UsageError(
            f"images {images.dtype} {tuple(images.shape)}: give uint8 (B, H, W, {len(mean)}), 0 to "
            "255; normalise others as (pixel - mean) / std, for pixels from 0 to 1, yourself"
        )
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    x = images.permute(0, 3, 1, 2).float()
    # unlike `new_tensor`, this does not synchronise with the GPU
    factor, offset = (
        torch.tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)[:, None, None]
        for values in (scale, shift)
    )
    return x.mul_(factor).add_(offset)


class NormalizedImages:
    """Images uint8 (B, H, W, C) as `Pixels`, normalised on indexing.

    So a large image is never in memory as float32.
    """

    def __init__(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.mean, self.std = images, mean, std
        B, H, W, channels = images.shape
        self.shape, self.device = (B, channels, H, W), images.device

    def __getitem__(self, index: tuple[Any, slice, slice]) -> Tensor:
        _, rows, columns = index
        return normalize(self.images[:, rows, columns], self.mean, self.std)


def predict_scores(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int | None = None,
) -> Tensor:
    """Compute class scores of images under a protocol.

    Args:
        images: normalised images (B, C, H, W), or a source that reads them piece by piece.
        size: (H, W) of the result; the images' own by default.
        batch_windows: windows per forward pass; by default 2 on a CPU, which saves memory, and on a
            GPU at least 8, and up to `GPU_PIXELS`.

    Returns:
        (B, K, H, W) float32, whose softmax over K is the class probabilities.
    """
    blocks = list(score_blocks(model, images, protocol, size=size, batch_windows=batch_windows))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def score_blocks(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int | None = None,
) -> Iterator[Tensor]:
    """As `predict_scores`, but yields blocks of rows (B, K, rows, W) from top to bottom."""
    views = _views(model, images, protocol, batch_windows)
    for block in _score_blocks(views, size or (images.shape[-2], images.shape[-1])):
        yield _logarithms(block) if len(views) > 1 else block


def _logarithms(probabilities: Tensor) -> Tensor:
    """Their logarithms, in place."""
    return probabilities.clamp_(min=torch.finfo(probabilities.dtype).tiny).log_()


def predict_mask(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int | None = None,
    with_confidence: bool = True,
    on_scores: OnScores | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Predict the class of every pixel, without K x H x W scores in memory.

    Args:
        model, images, protocol, size, batch_windows: as in `predict_scores`.
        with_confidence: also compute the probabilities.
        on_scores: called with each block of the scores that `predict_scores` would return, from top
            to bottom. The classes are the same without it.

    Returns:
        Class ids uint8 (B, H, W), and their probabilities float32 (B, H, W), 0 to 1, or None.

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
            on_scores=on_scores,
        )
    )
    ids = torch.cat([block for block, _ in blocks], dim=1)
    if not with_confidence:
        return ids, None
    return ids, torch.cat([block for _, block in blocks if block is not None], dim=1)


def mask_blocks(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
    batch_windows: int | None = None,
    with_confidence: bool = True,
    on_scores: OnScores | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """As `predict_mask`, but yields blocks of rows from top to bottom.

    Args:
        model, images, protocol, size, batch_windows, with_confidence, on_scores: as there.
        columns: (start, stop) of a vertical strip to compute; the whole width by default. Windows
            are those of the whole image. Only for a scale of 1 without flip.

    Raises:
        SetrError: the model's scores are not numbers (NaN).
    """
    views = _views(model, images, protocol, batch_windows, columns)
    H, W = size or (images.shape[-2], images.shape[-1])
    if columns is not None:
        W = columns[1] - columns[0]
    mask = None if with_confidence else _single_window_mask(views, (H, W))
    if mask is not None and on_scores is None:
        yield mask, None
        return
    top = 0
    for block in _score_blocks(views, (H, W)):
        first, top = top, top + block.shape[2]
        if mask is None:
            best, index = best_class(block)
            if with_confidence and len(views) == 1:
                best = (block - best[:, None]).exp_().sum(dim=1).reciprocal_()
            ids, confidence = index, best if with_confidence else None
        else:
            ids, confidence = mask[:, first:top], None
        if on_scores:
            on_scores(first, _logarithms(block) if len(views) > 1 else block)
        yield ids, confidence


def _views(
    model: Model,
    images: Tensor | Pixels,
    protocol: Protocol,
    batch_windows: int | None,
    columns: tuple[int, int] | None = None,
) -> list[View]:
    """The views: every scale, without and with flip, in every model of an ensemble."""
    flips = (False, True)[: 1 + protocol.flip]
    batch_windows = batch_windows or _batch_windows(images, protocol)
    return [
        View(member, source, protocol, flip, batch_windows, columns)
        for member in getattr(model, "members", (model,))
        for source in _scaled(images, protocol)
        for flip in flips
    ]


def _batch_windows(images: Tensor | Pixels, protocol: Protocol) -> int:
    if images.device.type == "cpu":
        return 2
    height, width = protocol.window or images.shape[-2:]
    return max(8, GPU_PIXELS // (height * width))


def _single_window_mask(views: list[View], size: tuple[int, int]) -> Tensor | None:
    """Ids (B, H, W) if a single window on a CPU covers the whole result, else None."""
    view = views[0]
    if len(views) > 1 or view.size != size or view.device.type != "cpu":
        return None
    window = view.only_window()
    return best_upsampled(window.logits, window.padded, size) if window else None


def _score_blocks(views: list[View], size: tuple[int, int]) -> Iterator[Tensor]:
    """Consecutive blocks of rows (B, K, rows, W) float32, top to bottom.

    They are logits for a single view, else mean probabilities.
    """
    (H, W), first = size, views[0]
    device = first.device.type
    row_bytes = 4 * first.num_images * first.num_classes * max(W, first.size[1])
    rows = max(8, BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]) // row_bytes)
    for top in range(0, H, rows):
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


def _scaled(images: Tensor | Pixels, protocol: Protocol) -> Iterator[Tensor | Pixels]:
    """The images at every scale of the protocol."""
    size = (images.shape[-2], images.shape[-1])
    for scale in protocol.scales:
        wanted = protocol.view_size(*size, scale)
        yield images if wanted == size else Resized(images, wanted)
