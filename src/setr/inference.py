"""Whole-image, sliding-window and multi-scale prediction: tensors in, scores out, no file I/O.

Order of merging, stated once. Per scale and flip: the image is resized; logits of all windows are
summed and divided by how many windows cover each pixel; logits are resized to the original image;
softmax. Probabilities are then averaged over scales and flips (mmsegmentation, Segmenter and DINOv3
agree on this order). Single-scale results are the logits themselves, whose argmax is the same.

Shapes: B batch, H x W original image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.errors import SetrError

Model = Callable[[Tensor], Tensor]


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 RGB (B, H, W, 3) -> float (B, 3, H, W), mean 0 and deviation 1."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    x = images.permute(0, 3, 1, 2).float()
    return x * x.new_tensor(scale)[:, None, None] + x.new_tensor(shift)[:, None, None]


@dataclass(frozen=True)
class Protocol:
    """How an image is tested.

    Args:
        scales: factors on the image (after `short_side`); more than one averages probabilities.
        flip: average with the horizontally mirrored image.
        window: (height, width) of a sliding window in pixels; None runs the whole image at once.
        stride: (vertical, horizontal) step of the window in pixels.
        short_side: the image is first scaled to this short side in pixels; None keeps its size.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    short_side: int | None = None

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise SetrError(f"scales {self.scales}: give one or more positive factors")
        if (
            self.window
            and self.stride
            and not all(0 < s <= w for s, w in zip(self.stride, self.window, strict=True))
        ):
            raise SetrError(
                f"stride {self.stride}: must be between 1 and the window {self.window}, or pixels "
                "would be left out"
            )


MULTI_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The paper's test scales (section 4.1)."""


def predict_scores(
    model: Model,
    images: Tensor,
    protocol: Protocol,
    *,
    size: tuple[int, int] | None = None,
    batch_windows: int = 8,
) -> Tensor:
    """Scores of images under a protocol.

    Args:
        model: normalised images (b, 3, h, w) -> logits (b, K, h, w).
        images: normalised images (B, 3, H, W).
        protocol: scales, flip and window.
        size: (H, W) of the result; the images' own by default.
        batch_windows: windows per forward pass.

    Returns:
        (B, K, H, W): logits for one scale without flip, else mean probabilities.
    """
    size = size or (images.shape[-2], images.shape[-1])
    views = [
        (scale, flip) for scale in protocol.scales for flip in (False, True)[: 1 + protocol.flip]
    ]
    total: Tensor | None = None
    for scale, flip in views:
        view = _rescale(images, scale, protocol.short_side)
        view = view.flip(-1) if flip else view
        logits = _window_logits(model, view, protocol, batch_windows)
        logits = _resize(logits.flip(-1) if flip else logits, size)
        if len(views) == 1:
            return logits
        scores = logits.float().softmax(dim=1)
        total = scores if total is None else total.add_(scores)
    assert total is not None
    return total.div_(len(views))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Start positions that cover `length` pixels; the last window is moved back to the edge."""
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def _window_logits(model: Model, images: Tensor, protocol: Protocol, batch: int) -> Tensor:
    if protocol.window is None:
        return model(images)
    H, W = images.shape[-2:]
    wh, ww = (min(w, s) for w, s in zip(protocol.window, (H, W), strict=True))
    sh, sw = protocol.stride or protocol.window
    boxes = [(y, x) for y in window_starts(H, wh, sh) for x in window_starts(W, ww, sw)]
    if len(boxes) == 1:
        return model(images)
    total: Tensor | None = None
    covered = images.new_zeros(1, 1, H, W)
    per_call = max(1, batch // images.shape[0])
    for start in range(0, len(boxes), per_call):
        chunk = boxes[start : start + per_call]
        crops = torch.cat([images[..., y : y + wh, x : x + ww] for y, x in chunk])
        for (y, x), logits in zip(chunk, model(crops).split(images.shape[0]), strict=True):
            if total is None:
                total = logits.new_zeros(images.shape[0], logits.shape[1], H, W)
            total[..., y : y + wh, x : x + ww] += logits
            covered[..., y : y + wh, x : x + ww] += 1
    assert total is not None
    return total.div_(covered)


def _rescale(images: Tensor, scale: float, short_side: int | None) -> Tensor:
    H, W = images.shape[-2:]
    factor = scale * (1.0 if short_side is None else short_side / min(H, W))
    return _resize(images, (max(1, round(H * factor)), max(1, round(W * factor))))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
