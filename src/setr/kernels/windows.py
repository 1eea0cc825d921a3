"""Sliding windows: their positions, and their merged logits, computed by rows on demand.

A `View` is an image at one scale and flip. Its windows run in batches, from top to bottom, and
their logits are kept at the decoder's scale until their last row has been requested. The image may
be a tensor, or a source that reads parts of a file; both views of a scale share one, and drop it
after cropping their last windows.

Shapes: B batch, H x W view, K classes.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.kernels.resized_rows import resize_rows
from setr.kernels.row_blocks import source_rows
from setr.processes.faults import is_out_of_memory
from setr.protocols import Protocol

Model = Callable[[Tensor], Any]
"""Normalised images (b, C, h, w) -> logits (b, K, h, w). The method `coarse` of `SETR` returns them
before resizing, which saves most of the memory. An ensemble has such models as `members`."""


class Pixels(typing.Protocol):
    """Normalised images that are read in parts: `source[..., top:bottom, left:right]`."""

    shape: tuple[int, int, int, int]
    device: torch.device

    def __getitem__(self, place: tuple[Any, slice, slice]) -> Tensor: ...


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Start positions that cover `length` pixels; the last window is aligned to the edge."""
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


class Resized:
    """Images resized to another size, as `Pixels`; computed on first access."""

    def __init__(self, images: Tensor | Pixels, size: tuple[int, int]) -> None:
        B, channels = images.shape[:2]
        self.source: Tensor | Pixels = images
        self.shape, self.device = (B, channels, *size), images.device
        self.pixels: Tensor | None = None

    def __getitem__(self, place: tuple[Any, slice, slice]) -> Tensor:
        if self.pixels is None:
            H, W = self.source.shape[-2:]
            whole = self.source[..., 0:H, 0:W]
            size = self.shape[-2:]
            self.pixels = F.interpolate(whole, size, mode="bilinear", align_corners=False)
        return self.pixels[place]


class View:
    """Merged logits of one scale and flip, computed from top to bottom as rows are requested.

    Args:
        images: at the view's scale, not flipped.
        protocol: its window, stride and blending are used.
        flip: mirror the image horizontally, and mirror its logits back.
        batch_windows: number of windows per forward pass.
        columns: (start, stop) of the columns to compute, only for views neither resized nor
            flipped; all by default.
    """

    def __init__(
        self,
        model: Model,
        images: Tensor | Pixels,
        protocol: Protocol,
        flip: bool,
        batch_windows: int,
        columns: tuple[int, int] | None,
    ) -> None:
        assert columns is None or not (flip or isinstance(images, Resized))
        self.images: Tensor | Pixels | None = images
        self.num_images, self.device = images.shape[0], images.device
        size = (images.shape[-2], images.shape[-1])
        self.model, self.flip, self.batch = model, flip, batch_windows
        window = protocol.window or size
        stride = protocol.stride or window
        self.window = min(window[0], size[0]), min(window[1], size[1])
        self.tops, lefts = (
            window_starts(length, w, s)
            for length, w, s in zip(size, self.window, stride, strict=True)
        )
        self.columns = columns or (0, size[1])
        start, stop = self.columns
        self.lefts = [x for x in lefts if x < stop and x + self.window[1] > start]
        self.size = size[0], stop - start  # of the part that is computed
        self.blend = protocol.blend
        shape = _pyramid if self.blend else torch.ones
        self.weights = [shape(w).to(self.device) for w in self.window]
        self.active: list[Window] = []  # computed, and still needed
        self.num_rows = 0  # rows of windows computed so far

    @property
    def num_classes(self) -> int:
        """K, known after the first forward pass."""
        if not self.active:
            self._compute()
        return self.active[0].logits.shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        """Merged logits (B, K, last - first, W') float32; `first` must not decrease over calls."""
        self.active = [w for w in self.active if w.top + self.window[0] > first]
        while self.num_rows < len(self.tops) and self.tops[self.num_rows] < last:
            for window in self.active:
                window.free_above(first)
            self._compute()
        only = self.only_window()
        merged = only.rows(first, last) if only else self._merge(first, last)
        return merged.flip(-1) if self.flip else merged

    def only_window(self) -> Window | None:
        """The window, if a single one covers the whole view."""
        if len(self.tops) * len(self.lefts) > 1 or self.window != self.size:
            return None
        if not self.active:
            self._compute()
        return self.active[0]

    def _merge(self, first: int, last: int) -> Tensor:
        (wh, ww), (start, stop) = self.window, self.columns
        B, K = self.active[0].logits.shape[:2]
        total = torch.zeros(B, K, last - first, stop - start, device=self.device)
        for window in self.active:
            a, b = max(first, window.top), min(last, window.top + wh)
            if a < b:
                part = window.rows(a - window.top, b - window.top)
                if self.blend:
                    part = part * self.weights[0][a - window.top : b - window.top, None]
                    part *= self.weights[1]
                c, d = max(start, window.left), min(stop, window.left + ww)
                part = part[..., c - window.left : d - window.left]
                total[:, :, a - first : b - first, c - start : d - start] += part
        down = _coverage(self.tops, self.weights[0], first, last)
        across = _coverage(self.lefts, self.weights[1], start, stop)
        return total.div_(down[:, None] * across)

    def _compute(self) -> None:
        """Run the next row of windows, or as many rows as fit into a batch."""
        B = self.num_images
        num = max(1, self.batch // B // len(self.lefts))
        tops = self.tops[self.num_rows : self.num_rows + num]
        self.num_rows += len(tops)
        places = [(top, left) for top in tops for left in self.lefts]
        while places:
            batch = places[: max(1, self.batch // B)]
            if self._run(batch):
                places = places[len(batch) :]
            else:
                self.batch = len(batch) // 2 * B
        if self.num_rows == len(self.tops):
            self.images = None

    def _run(self, places: list[tuple[int, int]]) -> bool:
        """Run one batch of windows; False if memory runs out that half of them may not need."""
        crops = [self._crop(top, left) for top, left in places]
        batch = crops[0] if len(crops) == 1 else torch.cat(crops)
        try:
            logits, size = _coarse_logits(self.model, batch)
        except RuntimeError as error:
            if len(places) == 1 or not is_out_of_memory(error):
                raise
            return False
        for (top, left), part in zip(places, logits.split(self.num_images), strict=True):
            self.active.append(Window(top, left, part, size, self.window))
        return True

    def _crop(self, top: int, left: int) -> Tensor:
        """The pixels of a window; for a flipped view, those at the mirrored position, flipped."""
        assert self.images is not None
        wh, ww = self.window
        if not self.flip:
            return self.images[..., top : top + wh, left : left + ww]
        right = self.size[1] - left
        return self.images[..., top : top + wh, right - ww : right].flip(-1)


def _pyramid(length: int) -> Tensor:
    """Weights along a window: 1 in the middle, falling linearly to almost 0 at both ends."""
    ramp = torch.arange(length) + 0.5
    return torch.minimum(ramp, length - ramp) / (length / 2)


def _coverage(starts: list[int], weights: Tensor, first: int, last: int) -> Tensor:
    """Sum of the windows' weights at positions first .. last-1 along an axis."""
    total = weights.new_zeros(last - first)
    for start in starts:
        a, b = max(first, start), min(last, start + len(weights))
        if a < b:
            total[a - first : b - first] += weights[a - start : b - start]
    return total


class Window:
    """Logits of one window at the decoder's scale."""

    def __init__(
        self, top: int, left: int, logits: Tensor, padded: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self.top, self.left = top, left
        self.logits = logits
        self.height = logits.shape[-2]
        self.padded, self.size = padded, size  # in pixels; the logits cover the padded size
        self.first = 0  # row of the full logits at which `logits` begins

    def rows(self, first: int, last: int) -> Tensor:
        """Logits (B, K, last - first, window width) float32 at the view's resolution."""
        source = (self.height, self.logits.shape[-1])
        rows = resize_rows(self._fetch, source, self.padded, first, last)
        return rows[..., : self.size[1]]

    def free_above(self, row: int) -> None:
        """Free the logits that are needed only for rows of the view above `row`."""
        if row <= self.top:
            return
        at = row - self.top
        lower, _, _ = source_rows(at, at + 1, self.height, self.padded[0])
        first = int(lower)
        if first > self.first:
            self.logits = self.logits[..., first - self.first :, :].clone()
            self.first = first

    def _fetch(self, first: int, last: int) -> Tensor:
        return self.logits[..., first - self.first : last - self.first, :].float()


def _coarse_logits(model: Model, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Logits at any scale, and the size in pixels that they cover."""
    if hasattr(model, "coarse"):
        output = model.coarse(images)
        return output.logits, output.size
    return model(images), (images.shape[-2], images.shape[-1])
