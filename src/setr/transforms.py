"""Joint image and mask augmentation on numpy arrays with an explicit random generator.

Crop first: the crop is chosen in the coordinates of the resized image and mapped back, so that
only the window is ever resized (the same distribution as resize-then-crop, and identical at
scale 1); a rotation turns that window in the same resampling. Images are sampled bilinearly, masks
by nearest neighbour; ids are never blended.

Every draw comes from `np.random.default_rng((seed, epoch, index))`, so a sample is the same
whatever the number of workers or processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from setr.data.dataset import Mask, Pixels
from setr.labels import IGNORE

PAD_COLOUR = (124, 116, 104)
"""ImageNet's mean: zero after normalisation with the default mean and std."""
LONGEST = 32767
"""Side in pixels from which OpenCV before 5 refuses to warp an image."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training sample (paper section 4.1, after mmsegmentation).

    Args:
        crop_size: (height, width) of the result in pixels.
        short_side: the image is first scaled to this short side in pixels; None keeps its size.
        long_side: that scaling stops where the long side reaches this many pixels.
        scale_range: random factor on top, uniform.
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        rotate: largest rotation in degrees about the crop's centre, uniform, in both directions.
        photometric: random brightness, contrast, and of three channels saturation and hue.
        max_class_share: a crop is drawn again (at most 10 times) while one class covers more than
            this share of its counted pixels, or no pixel counts.
        rare_crops: share of the crops laid around a pixel of a class drawn by `class_odds`.
        class_odds: (K,) relative odds of each class to be drawn, among those in the mask.
        fill: value of each channel outside the image.
    """

    crop_size: tuple[int, int]
    short_side: int | None = None
    long_side: int | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    flip_vertical: float = 0.0
    rotate: float = 0.0
    photometric: bool = True
    max_class_share: float = 0.75
    rare_crops: float = 0.0
    class_odds: tuple[float, ...] = ()
    fill: tuple[int, ...] = PAD_COLOUR

    def __call__(
        self, image: Pixels, mask: Mask, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, C), mask uint8 (H, W) -> the same kinds, of `crop_size`.

        The crop is chosen by the mask alone; of the image only what it needs is asked for, and so
        it is of a mask that reads where the image has gaps.

        Where the image is smaller, the rest of the crop, below and to the right, is mean colour and
        ignored, whatever happens to the image; so are the corners that a rotation leaves, but they
        are flipped and distorted with it.
        """
        H, W = image.shape[:2]
        scale = base_scale(H, W, self.short_side, self.long_side) * rng.uniform(*self.scale_range)
        size = max(1, round(H * scale)), max(1, round(W * scale))
        centre = self._rare_pixel(mask, rng) if self.rare_crops else None
        angle = rng.uniform(-self.rotate, self.rotate) if self.rotate else 0.0
        for _ in range(10):
            origin = self._origin(size, centre, rng)
            window = CropWindow((H, W), size, origin, self.crop_size, angle)
            whole = isinstance(mask, np.ndarray) and max(H, W) < LONGEST
            rows, columns = (slice(0, H), slice(0, W)) if whole else window.reach
            corner = rows.start, columns.start
            cropped = window.sampled(mask[rows, columns], nearest=True, fill=IGNORE, corner=corner)
            if self._fits(cropped):
                break
        rows, columns = window.reach
        pixels = window.sampled(
            image[rows, columns],
            nearest=False,
            fill=self.fill,
            corner=(rows.start, columns.start),
        )
        if rng.random() < self.flip:
            pixels, cropped = flipped(pixels, 1), cv2.flip(cropped, 1)
        if self.flip_vertical and rng.random() < self.flip_vertical:
            pixels, cropped = flipped(pixels, 0), cv2.flip(cropped, 0)
        if self.photometric:
            pixels = distort(pixels, rng)
        return window.padded(pixels, self.fill), window.padded(cropped, IGNORE)

    def _fits(self, cropped: np.ndarray) -> bool:
        counts = cv2.calcHist([cropped], [0], None, [256], [0, 256])[:IGNORE]
        return bool(0 < counts.max() <= self.max_class_share * counts.sum())

    def _origin(
        self, size: tuple[int, int], centre: tuple[float, float] | None, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Top left corner of a crop in a resized image, uniform over those that hold `centre`.

        `centre` is (y, x) as shares of height and width.
        """
        corner = []
        for axis, (side, crop) in enumerate(zip(size, self.crop_size, strict=True)):
            low, high = 0, max(side - crop, 0)
            if centre is not None:
                at = int(centre[axis] * side)
                low, high = max(at - crop + 1, 0), min(at, high)
            corner.append(int(rng.integers(low, max(low, high) + 1)))
        return corner[0], corner[1]

    def _rare_pixel(self, mask: Mask, rng: np.random.Generator) -> tuple[float, float] | None:
        """(y, x) of a pixel of a class drawn by its odds, as shares of the size; None mostly."""
        if rng.random() >= self.rare_crops:
            return None
        mask = mask[:]
        present = np.bincount(mask.ravel(), minlength=256)[: len(self.class_odds)] > 0
        odds = np.where(present, self.class_odds, 0.0)
        if not odds.sum():
            return None
        chosen = rng.choice(len(odds), p=odds / odds.sum())
        places = np.flatnonzero(mask == chosen)
        y, x = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
        return (y + 0.5) / mask.shape[0], (x + 0.5) / mask.shape[1]


def base_scale(H: int, W: int, short_side: int | None, long_side: int | None) -> float:
    """Factor that brings an image to a short side, its long side staying within a limit."""
    if short_side is None:
        return 1.0
    scale = short_side / min(H, W)
    return scale if long_side is None else min(scale, long_side / max(H, W))


def fill_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """What lies outside the image: of three channels ImageNet's mean, of others their own."""
    return PAD_COLOUR if len(mean) == 3 else tuple(round(255 * value) for value in mean)


def rare_class_odds(pixels: np.ndarray) -> tuple[float, ...]:
    """(K,) odds from pixel counts: one over the square root of the share, 0 for absent classes."""
    odds = np.zeros(len(pixels))
    odds[pixels > 0] = 1 / np.sqrt(pixels[pixels > 0] / pixels.sum())
    return tuple((odds / max(odds.sum(), 1e-12)).tolist())


@dataclass(frozen=True)
class CropWindow:
    """A crop of a resized image, computed without resizing the rest.

    Args:
        source: (H, W) of the image.
        resized: (H', W') it is resized to.
        origin: (top, left) of the crop in the resized image.
        size: (height, width) of the crop.
        angle: degrees the content is turned by about its centre, clockwise.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    origin: tuple[int, int]
    size: tuple[int, int]
    angle: float = 0.0

    @property
    def reach(self) -> tuple[slice, slice]:
        """Source rows and columns that bilinear sampling of the window can touch; at least one."""
        reach = []
        for first, length, n, N in zip(*self._box(), self.source, self.resized, strict=True):
            last = min(first + length, N)
            reach.append(slice(max(0, first * n // N - 1), min(n, -(-last * n // N) + 1)))
        return reach[0], reach[1]

    def _box(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Origin and size, in the resized image, of what the window covers when it is turned."""
        if not self.angle:
            return self.origin, self.size
        height, width = self.size
        corners = [[x, y, 1] for x in (-1, width) for y in (-1, height)]
        x, y, _ = self._turn() @ np.transpose(corners)
        low = [
            max(0, first + math.floor(places.min()))
            for first, places in zip(self.origin, (y, x), strict=True)
        ]
        high = [
            first + math.ceil(places.max()) + 1
            for first, places in zip(self.origin, (y, x), strict=True)
        ]
        return (low[0], low[1]), (high[0] - low[0], high[1] - low[1])

    def cut(
        self,
        array: np.ndarray,
        *,
        nearest: bool,
        fill: int | tuple[int, ...],
        corner: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """Resample the window of (H, W[, C]) uint8; outside the resized image it holds `fill`.

        The array is the source, or the part of it below and right of `corner` that `reach` names.
        """
        return self.padded(self.sampled(array, nearest=nearest, fill=fill, corner=corner), fill)

    def sampled(
        self,
        array: np.ndarray,
        *,
        nearest: bool,
        fill: int | tuple[int, ...],
        corner: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """`cut` without the part outside the resized image; a turned window is whole."""
        (top, left), (height, width) = self.origin, self.size
        inside = min(height, self.resized[0] - top), min(width, self.resized[1] - left)
        y, x = corner
        flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
        if self.angle:
            matrix = self._to_source(corner) @ self._turn()
            return _warped(array, matrix, (width, height), flags, cv2.BORDER_CONSTANT, fill)
        if self.source == self.resized:
            return array[top - y : top - y + inside[0], left - x : left - x + inside[1]]
        matrix = self._to_source(corner)
        return _warped(array, matrix, (inside[1], inside[0]), flags, cv2.BORDER_REPLICATE, fill)

    def padded(self, part: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        """What was `sampled`, contiguous, with `fill` below and right of it up to the size."""
        if part.shape[:2] == self.size:
            return np.ascontiguousarray(part)
        out = np.empty((*self.size, *part.shape[2:]), dtype=part.dtype)
        out[...] = fill
        out[: part.shape[0], : part.shape[1]] = part
        return out

    def _to_source(self, corner: tuple[int, int]) -> np.ndarray:
        """(2, 3): window (x, y) -> source (x, y), from pixel centre to pixel centre.

        source = (target + origin + 0.5) * s - 0.5, less the corner.
        """
        (top, left), (y, x) = self.origin, corner
        sy, sx = self.source[0] / self.resized[0], self.source[1] / self.resized[1]
        return np.array([[sx, 0, (left + 0.5) * sx - 0.5 - x], [0, sy, (top + 0.5) * sy - 0.5 - y]])

    def _turn(self) -> np.ndarray:
        """(3, 3): turns window (x, y) about the centre of the part that lies in the image."""
        y, x = (
            (min(side, end - first) - 1) / 2
            for side, end, first in zip(self.size, self.resized, self.origin, strict=True)
        )
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        return np.array(
            [[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y], [0, 0, 1]]
        )


def _warped(
    array: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    flags: int,
    border: int,
    fill: int | tuple[int, ...],
) -> np.ndarray:
    """`cv2.warpAffine` to (width, height) of (H, W[, C]), with any number of channels."""
    channels = array.shape[2:]
    if not channels or channels == (3,):
        return cv2.warpAffine(array, matrix, size, flags=flags, borderMode=border, borderValue=fill)
    values = fill if isinstance(fill, tuple) else (fill,) * channels[0]
    parts = [
        cv2.warpAffine(
            np.ascontiguousarray(array[..., i : i + 4]),  # a border has at most four values
            matrix,
            size,
            flags=flags,
            borderMode=border,
            borderValue=values[i : i + 4],
        ).reshape(size[1], size[0], -1)
        for i in range(0, channels[0], 4)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def flipped(image: np.ndarray, axis: int) -> np.ndarray:
    """`cv2.flip` of (H, W, C), which alone would drop a single channel's axis."""
    return cv2.flip(image, axis).reshape(image.shape)


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion after mmsegmentation, by look-up tables: uint8 (H, W, C) in and out.

    Each with probability one half: brightness +-32, contrast x0.5-1.5 (before or after the colour
    steps, at random), saturation x0.5-1.5, hue +-18 degrees of OpenCV's 180. The last two are of
    colours: images of other than three channels have none.
    """
    shape = image.shape
    values = np.arange(256, dtype=np.float32)
    if rng.random() < 0.5:
        values = np.clip(values + rng.uniform(-32, 32), 0, 255)
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    if contrast_first:
        values = np.clip(values * contrast, 0, 255)
    image = cv2.LUT(np.ascontiguousarray(image), np.rint(values).astype(np.uint8))
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0
    if shape[2] == 3 and (saturation != 1.0 or hue):
        table = np.stack(
            [
                (np.arange(256) + hue) % 180,
                np.clip(np.rint(np.arange(256) * saturation), 0, 255),
                np.arange(256),
            ],
            axis=-1,
        ).astype(np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and contrast != 1.0:
        image = cv2.LUT(image, np.clip(np.rint(np.arange(256) * contrast), 0, 255).astype(np.uint8))
    return image.reshape(shape)
