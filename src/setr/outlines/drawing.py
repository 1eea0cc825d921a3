"""Rasterising outlines into id masks.

A pixel belongs to an outline that contains its centre (even-odd rule), so outlines that share an
edge neither overlap nor leave a gap, and polygons written by `annotations.py` give their mask back.
Coordinates are x, y in pixels: the image spans 0 .. W and 0 .. H.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from setr.errors import SetrError
from setr.outlines.mask_files import Cover, MaskFile, Segments, cropped
from setr.reading.masks import read_mask
from setr.reading.pillow import MAX_PIXELS, opened

T = TypeVar("T")

MOST_CROSSINGS = 10_000_000
"""Of an outline and the rows of a small image; each takes some bytes until it is drawn."""


@dataclass(frozen=True)
class Ring:
    """A polygon with points (N, 2), in pixels or, if `relative`, in fractions of W and H.

    `holes` are polygons, each (N, 2), that are cut out of it.
    """

    points: np.ndarray
    relative: bool = False
    holes: tuple[np.ndarray, ...] = ()

    def cover(self, size: tuple[int, int]) -> Cover:
        """Pixels of an image of `size` (H, W) with their centre inside the polygon.

        Raises:
            SetrError: a tangle that would take more memory than any image.
        """
        H, W = size
        own = self.in_pixels(size)
        lines = [own.points, *own.holes]
        ring = np.concatenate(lines)
        ends = np.concatenate([np.roll(line, -1, axis=0) for line in lines])
        # edges go downwards, so that outlines that share an edge compute the same crossings
        down = (ring[:, 1] <= ends[:, 1])[:, None]
        (x0, y0), (x1, y1) = np.where(down, ring, ends).T, np.where(down, ends, ring).T
        first, last = _pixels(y0, H), _pixels(y1, H)
        top, bottom = int(first.min()), int(last.max())
        left, right = int(_pixels(ring[:, 0], W).min()), int(_pixels(ring[:, 0], W).max())
        if int((last - first).sum()) > max(MOST_CROSSINGS, 4 * H * W):
            raise SetrError(
                f"an outline of {len(ring):,} points crosses the rows of an image of {H} x {W} "
                "(height x width) more often than there are pixels; simplify it"
            )
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

    def mapped(self, to: Callable[[np.ndarray], np.ndarray]) -> Ring:
        """The polygon with a function of points (N, 2) applied, in pixels."""
        return Ring(to(self.points), holes=tuple(map(to, self.holes)))

    def in_pixels(self, size: tuple[int, int]) -> Ring:
        """The polygon in pixels of an image of `size` (H, W)."""
        return self.mapped(lambda points: points * size[::-1]) if self.relative else self

    def area(self, size: tuple[int, int]) -> float:
        """Square pixels without holes, also those outside an image of `size` (H, W).

        Rounded, so that equal polygons stay equal wherever they lie.
        """
        H, W = size
        sizes = []
        for line in (self.points, *self.holes):
            x, y = (line - line[0]).T
            sizes.append(abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2)
        return round((sizes[0] - sum(sizes[1:])) * (W * H if self.relative else 1), 3)


@dataclass(frozen=True)
class Runs:
    """COCO's column-major run lengths, from `as_counts`."""

    size: tuple[int, int]
    counts: np.ndarray

    def cover(self, size: tuple[int, int]) -> Cover:
        """Pixels of an image of `size` (H, W), cropped to their bounding box.

        Raises:
            SetrError: another image size, or lengths that do not add up to it.
        """
        lengths = self.counts
        if self.size != size or not _add_up(lengths, size):
            raise SetrError(
                f"run lengths of {lengths.sum()} pixels, size {list(self.size)}, "
                f"for an image of {size[0]} x {size[1]} (height x width)"
            )
        return cropped(unrolled(np.arange(len(lengths)) % 2 == 1, lengths, size[::-1]).T)


@dataclass(frozen=True)
class Patch:
    """A PNG mask (base64 if it is text) with its upper left pixel at (top, left).

    LabelMe's shape `mask` and Supervisely's bitmaps; transparent pixels are outside.
    """

    top: int
    left: int
    png: str | bytes

    def cover(self, size: tuple[int, int]) -> Cover:
        """The part of it inside an image of `size` (H, W).

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


Part = Ring | Runs | Patch | MaskFile | Segments


class Shape(NamedTuple):
    """An object: its class name, and the parts whose union is its area."""

    name: str
    parts: tuple[Part, ...]


class Rules(NamedTuple):
    """How outlines become ids.

    Attributes:
        ids: by class name.
        rest: id of pixels outside all outlines.
        largest_first: draw small objects over large ones, whatever their order in the file. The
            part of a polygon outside the image counts, so that all images of a layer have one
            order.
        order: names of classes; those named later are drawn over those named earlier, and all of
            them over others.
    """

    ids: Mapping[str, int]
    rest: int
    largest_first: bool
    order: tuple[str, ...] = ()


class Drawn(NamedTuple):
    """The mask of an image.

    Attributes:
        mask: ids (H, W) uint8.
        overlaps: pixels at which a shape of one class was drawn over one of another, by both names.
    """

    mask: np.ndarray
    overlaps: Counter[tuple[str, str]]


def draw(shapes: Sequence[Shape], size: tuple[int, int], rules: Rules) -> Drawn:
    """Draw the mask of an image of `size` (H, W), each shape over those before it.

    Raises:
        SetrError: a part that cannot be read.
    """

    def area(drawn: tuple[Part, Cover]) -> float:
        part, cover = drawn
        return part.area(size) if isinstance(part, Ring) else int(np.count_nonzero(cover.inside))

    drawn = [(shape.name, [(part, part.cover(size)) for part in shape.parts]) for shape in shapes]
    drawn = in_order(drawn, rules, area)
    ids = rules.ids
    mask, covered = np.full(size, rules.rest, np.uint8), np.zeros(size, bool)
    overlaps: Counter[tuple[str, str]] = Counter()
    names = {ids[name]: name for name, _ in drawn}
    for name, parts in drawn:
        for _, (top, left, inside) in parts:
            H, W = inside.shape
            place = slice(top, top + H), slice(left, left + W)
            below = mask[place][inside & covered[place]]
            if below.size:
                counts = np.bincount(below, minlength=256)
                for i in np.flatnonzero(counts):
                    if i != ids[name]:
                        overlaps[name, names[int(i)]] += int(counts[i])
            mask[place][inside] = ids[name]
            covered[place] |= inside
    return Drawn(mask, overlaps)


def in_order(
    shapes: Iterable[tuple[str, list[T]]], rules: Rules, area: Callable[[T], float]
) -> list[tuple[str, list[T]]]:
    """Classes with the parts of their shapes, in the order in which they are drawn.

    Args:
        shapes: in the order of their file.
        rules: their `largest_first` and `order`.
        area: of a part.
    """

    def rank(shape: tuple[str, list[T]]) -> int:
        return rules.order.index(shape[0]) if shape[0] in rules.order else -1

    if rules.largest_first:
        shapes = sorted(shapes, key=lambda shape: -sum(map(area, shape[1])))
    return sorted(shapes, key=rank)


def as_points(values: Any, minimum: int = 3) -> np.ndarray:
    """At least `minimum` finite points as (N, 2); ValueError for anything else."""
    points = np.array(values, np.float64).reshape(-1, 2)
    if len(points) < minimum or not np.isfinite(points).all():
        raise ValueError
    return points


def ellipse(centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Ring:
    """An ellipse as a polygon: radii along x and y in pixels, rotated clockwise by radians.

    Raises:
        ValueError: values that are not finite.
    """
    t = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    a, b = radii[0] * np.cos(t), radii[1] * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    points = centre[0] + a * cos - b * sin, centre[1] + a * sin + b * cos
    return Ring(as_points(np.stack(points, axis=1)))


def as_counts(values: Any) -> np.ndarray:
    """Run lengths int64 from a list or COCO's compressed text; an exception for anything else."""
    counts = np.array(_uncompressed(values) if isinstance(values, str) else list(values), np.int64)
    if counts.ndim != 1:
        raise ValueError
    return counts


def unrolled(values: np.ndarray, lengths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values that are repeated so often, as an array of `size` (H, W), row by row.

    Raises:
        ValueError: the lengths do not add up to it, or it is too large for an image.
    """
    if not _add_up(lengths, size):
        raise ValueError
    return np.repeat(values, lengths).reshape(size)


def _add_up(lengths: np.ndarray, size: tuple[int, int]) -> bool:
    count = size[0] * size[1]
    single = ((lengths >= 0) & (lengths <= count)).all()  # or else their sum may overflow
    return bool(count <= MAX_PIXELS and single and lengths.sum() == count)


def _opaque(png: bytes) -> np.ndarray:
    """Pixels of a mask (H, W) bool that are not 0, or for RGBA images not transparent."""
    with opened(png, MAX_PIXELS) as image:
        if image.mode == "RGBA":
            return np.asarray(image.getchannel("A")) > 0
    return read_mask(png) > 0


def _pixels(edges: np.ndarray, count: int) -> np.ndarray:
    """Index of the first of `count` pixels whose centre is at or beyond a coordinate."""
    return np.ceil(edges - 0.5).clip(0, count).astype(np.int64)


def _uncompressed(text: str) -> list[int]:
    """Decode COCO's run-length text: 5-bit groups, numbers relative to the one two before."""
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
