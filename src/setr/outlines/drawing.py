"""Outlines of objects, drawn into masks of ids.

A pixel belongs to an outline that holds its centre (even-odd rule), so outlines that share an edge
share no pixel and leave none between them, and what `annotations.py` writes gives its mask back.
Coordinates are x, y in pixels: the image spans 0 .. W and 0 .. H.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr.data.dataset import require_size
from setr.errors import SetrError
from setr.images import MAX_PIXELS, opened
from setr.labels import IGNORE
from setr.reading.masks import read_mask


class Cover(NamedTuple):
    """The pixels of a part: `inside` (h, w) bool, whose first pixel is at (top, left)."""

    top: int
    left: int
    inside: np.ndarray


@dataclass(frozen=True)
class Ring:
    """A closed line through points (N, 2), in pixels or, if `relative`, in shares of W and H.

    `holes` are lines within it, each (N, 2), that enclose what is not of the object.
    """

    points: np.ndarray
    relative: bool = False
    holes: tuple[np.ndarray, ...] = ()

    def cover(self, size: tuple[int, int]) -> Cover:
        """Pixels of an image of `size` (H, W) whose centre the line encloses and no hole does."""
        H, W = size
        lines = [line * (W, H) if self.relative else line for line in (self.points, *self.holes)]
        ring = np.concatenate(lines)
        ends = np.concatenate([np.roll(line, -1, axis=0) for line in lines])
        down = (ring[:, 1] <= ends[:, 1])[:, None]  # neighbours meet in the same numbers
        (x0, y0), (x1, y1) = np.where(down, ring, ends).T, np.where(down, ends, ring).T
        first, last = _pixels(y0, H), _pixels(y1, H)
        top, bottom = int(first.min()), int(last.max())
        left, right = int(_pixels(ring[:, 0], W).min()), int(_pixels(ring[:, 0], W).max())
        edge = np.repeat(np.arange(len(ring)), last - first)
        begins = np.cumsum(last - first) - (last - first)
        row = np.arange(len(edge)) - begins[edge] + first[edge]
        slope = (x1 - x0)[edge] / (y1 - y0)[edge]
        column = _pixels(x0[edge] + (row + 0.5 - y0[edge]) * slope, W)
        width = right - left + 1
        crossings = np.bincount(
            (row - top) * width + column.clip(left, right) - left, minlength=(bottom - top) * width
        ).reshape(-1, width)
        return Cover(top, left, np.cumsum(crossings[:, :-1], axis=1) % 2 == 1)


@dataclass(frozen=True)
class Runs:
    """COCO's run lengths, column by column, as `as_counts` gives them."""

    size: tuple[int, int]
    counts: np.ndarray

    def cover(self, size: tuple[int, int]) -> Cover:
        """Pixels of an image of `size` (H, W), down to the box that holds them.

        Raises:
            SetrError: of another image, or lengths that do not add up to it.
        """
        lengths = self.counts
        if self.size != size or lengths.sum() != size[0] * size[1] or (lengths < 0).any():
            raise SetrError(
                f"run lengths of {lengths.sum()} pixels, size {list(self.size)}, "
                f"for an image of {size[0]} x {size[1]} (height x width)"
            )
        inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(size[::-1]).T
        if not inside.any():
            return Cover(0, 0, inside[:0, :0])
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        # a copy, so that hundreds of small objects are not as many whole images
        return Cover(top, left, inside[top : rows[-1] + 1, left : columns[-1] + 1].copy())


@dataclass(frozen=True)
class Patch:
    """A small mask in PNG, in base64 if it is text, its first pixel at (top, left).

    LabelMe's shape `mask` and Supervisely's bitmaps; what is transparent does not belong to it.
    """

    top: int
    left: int
    png: str | bytes

    def cover(self, size: tuple[int, int]) -> Cover:
        """The part of it that lies in an image of `size` (H, W).

        Raises:
            SetrError: not a PNG mask.
        """
        try:
            png = self.png
            pixels = _opaque(base64.b64decode(png, validate=True) if isinstance(png, str) else png)
        except (binascii.Error, ValueError):
            raise SetrError("a mask that is not base64") from None
        skipped = (slice(max(0, -self.top), None), slice(max(0, -self.left), None))
        top, left = max(0, self.top), max(0, self.left)
        height, width = max(0, size[0] - top), max(0, size[1] - left)
        return Cover(min(top, size[0]), min(left, size[1]), pixels[skipped][:height, :width])


@dataclass(frozen=True)
class MaskFile:
    """A mask of the image's size; what is other than 0 belongs to the object."""

    path: Path

    def cover(self, size: tuple[int, int]) -> Cover:
        """All pixels of an image of `size` (H, W).

        Raises:
            SetrError: unreadable, or of another size.
        """
        mask = read_mask(self.path)
        require_size(self.path, mask, size)
        return Cover(0, 0, mask > 0)


@dataclass(frozen=True)
class Segments:
    """Those of COCO's panoptic PNG: numbers, as red + 256 green + 65536 blue."""

    path: Path
    numbers: tuple[int, ...]

    def cover(self, size: tuple[int, int]) -> Cover:
        """As `MaskFile` does."""
        mask = read_mask(self.path, rgb=True)
        require_size(self.path, mask, size)
        return Cover(0, 0, np.isin(mask @ np.array([1, 256, 65536]), self.numbers))


Part = Ring | Runs | Patch | MaskFile | Segments


class Shape(NamedTuple):
    """An object: the name of its class, and the parts that together are its area."""

    name: str
    parts: tuple[Part, ...]


def draw(
    shapes: Sequence[Shape],
    size: tuple[int, int],
    ids: Mapping[str, int],
    *,
    largest_first: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The mask of an image.

    Args:
        shapes: later ones are drawn over earlier ones.
        size: (H, W) in pixels.
        ids: of each name.
        largest_first: draw them from the largest to the smallest instead, by their pixels.

    Returns:
        Ids (H, W) uint8, `IGNORE` where no shape is, and (H, W) bool: where one is.

    Raises:
        SetrError: a part that cannot be read.
    """
    drawn = [(ids[shape.name], [part.cover(size) for part in shape.parts]) for shape in shapes]
    if largest_first:
        drawn.sort(key=lambda entry: -sum(np.count_nonzero(c.inside) for c in entry[1]))
    mask, covered = np.full(size, IGNORE, np.uint8), np.zeros(size, bool)
    for number, covers in drawn:
        for top, left, inside in covers:
            H, W = inside.shape
            mask[top : top + H, left : left + W][inside] = number
            covered[top : top + H, left : left + W] |= inside
    return mask, covered


def as_points(values: Any, least: int = 3) -> np.ndarray:
    """Points (N, 2); ValueError for anything else."""
    points = np.array(values, np.float64).reshape(-1, 2)
    if len(points) < least or not np.isfinite(points).all():
        raise ValueError
    return points


def ellipse(centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Ring:
    """An ellipse of radii along x and y in pixels, turned clockwise as seen, in radians.

    Raises:
        ValueError: no finite numbers.
    """
    turn = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    along, across = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = centre
    points = x + along * cos - across * sin, y + along * sin + across * cos
    return Ring(as_points(np.stack(points, axis=1)))


def as_counts(values: Any) -> np.ndarray:
    """Run lengths int64, of a list or of COCO's compressed text; an exception for anything else."""
    counts = np.array(_uncompressed(values) if isinstance(values, str) else list(values), np.int64)
    if counts.ndim != 1:
        raise ValueError
    return counts


def _opaque(png: bytes) -> np.ndarray:
    """Where a mask (H, W) bool is other than 0; of one in colours, where it is not transparent."""
    with opened(png, MAX_PIXELS) as image:
        if image.mode == "RGBA":
            return np.asarray(image.getchannel("A")) > 0
    return read_mask(png) > 0


def _pixels(edges: np.ndarray, count: int) -> np.ndarray:
    """The first of `count` pixels whose centre is at or behind a coordinate."""
    return np.ceil(edges - 0.5).clip(0, count).astype(np.int64)


def _uncompressed(text: str) -> list[int]:
    """Run lengths of COCO's text: groups of five bits, each number less the one two before it."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode():
        value |= (code - 48 & 31) << shift
        shift += 5
        if code - 48 & 32:
            continue
        if code - 48 & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
