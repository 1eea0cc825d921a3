"""Joint image and mask augmentation on numpy arrays with an explicit random generator.

The crop is chosen in the resized image, of which only the crop's window is computed
(`crop_window.py`): equal in distribution to resizing first, and identical at scale 1.

The loader seeds the generator with (seed, epoch, index), so a sample does not depend on the number
of workers or processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from setr.arguments.typed import check_fields
from setr.crop_window import CropWindow
from setr.data.dataset import Mask, Pixels
from setr.errors import UsageError
from setr.labels import IGNORE

PAD_COLOUR = (124, 116, 104)
"""ImageNet's mean: zero after normalisation with the default mean and std."""
TRIES = 10
"""Number of random crops among which one is chosen that meets a condition."""
LONGEST = 32767
"""Side in pixels from which OpenCV 4 cannot warp an image."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a training sample (paper section 4.1, as in mmsegmentation).

    Args:
        crop_size: (height, width) of the result in pixels.
        short_side: short side in pixels that the image is scaled to first; None keeps its size.
        long_side: limit of the long side in that scaling, in pixels.
        scale_range: range of a random scale factor applied on top, uniform.
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        rotate: largest rotation in degrees about the crop's centre, uniform, in both directions.
        photometric: random brightness and contrast, and with three channels saturation and hue.
        max_class_share: another crop is drawn (up to `TRIES`) if one class covers more than this
            share of its labelled pixels, or if all are ignored.
        rare_crops: share of crops that contain a pixel of a class drawn with `class_odds`. Those
            that a rotation would turn it out of are drawn anew, or are not rotated.
        class_odds: (K,) relative odds of drawing each class, among those in the mask.
        fill: value of each channel outside the image.

    Raises:
        SetrError: values of other types, or a size below 1.
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

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.crop_size) < 1:
            raise UsageError(f"crop_size {self.crop_size}: give positive pixels")

    def __call__(
        self, image: Pixels, mask: Mask, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, C) and mask uint8 (H, W) -> the same at `crop_size`.

        The crop is chosen from the mask alone, so that lazy images and masks are only read where
        needed.

        Smaller images are padded on the right and below with `fill` and `IGNORE`, after flips and
        distortion. The corners that a rotation leaves empty are filled before them.
        """
        H, W = image.shape[:2]
        scale = base_scale(H, W, self.short_side, self.long_side) * rng.uniform(*self.scale_range)
        size = max(1, round(H * scale)), max(1, round(W * scale))
        centre = self._rare_pixel(mask, rng) if self.rare_crops else None
        angle = self._angle(rng)
        lean = _sides(rng) if size != (H, W) or angle else (0, 0)
        for _ in range(TRIES):
            window = self._window((H, W), size, centre, angle, rng)
            window = replace(window, lean=lean)
            whole = isinstance(mask, np.ndarray) and max(H, W) < LONGEST
            rows, columns = (slice(0, H), slice(0, W)) if whole else window.source_region
            corner = rows.start, columns.start
            cropped = window.resample(mask[rows, columns], nearest=True, fill=IGNORE, corner=corner)
            if self._is_balanced(cropped):
                break
        rows, columns = window.source_region
        pixels = window.resample(
            image[rows, columns], nearest=False, fill=self.fill, corner=(rows.start, columns.start)
        )
        if rng.random() < self.flip:
            pixels, cropped = flipped(pixels, 1), cv2.flip(cropped, 1)
        if self.flip_vertical and rng.random() < self.flip_vertical:
            pixels, cropped = flipped(pixels, 0), cv2.flip(cropped, 0)
        if self.photometric:
            pixels = distort(pixels, rng)
        return window.pad(pixels, self.fill), window.pad(cropped, IGNORE)

    def _is_balanced(self, cropped: np.ndarray) -> bool:
        counts = cv2.calcHist([cropped], [0], None, [256], [0, 256])[:IGNORE]
        return bool(0 < counts.max() <= self.max_class_share * counts.sum())

    def _angle(self, rng: np.random.Generator) -> float:
        return rng.uniform(-self.rotate, self.rotate) if self.rotate else 0.0

    def _window(
        self,
        source: tuple[int, int],
        size: tuple[int, int],
        centre: tuple[float, float] | None,
        angle: float,
        rng: np.random.Generator,
    ) -> CropWindow:
        """A random crop, rotated by `angle`, or by another one if it would turn `centre` out."""
        for _ in range(TRIES):
            window = CropWindow(
                source, size, self._origin(size, centre, rng), self.crop_size, angle
            )
            if centre is None or window.shows(centre[0] * size[0], centre[1] * size[1]):
                return window
            angle = self._angle(rng)
        return replace(window, angle=0.0)

    def _origin(
        self, size: tuple[int, int], centre: tuple[float, float] | None, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Random (top, left) of a crop in the resized image; the crop contains `centre`, if given.

        `centre` is (y, x) relative to height and width.
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
        """Relative (y, x) of a pixel of a class drawn by its odds; None for other crops."""
        if rng.random() >= self.rare_crops:
            return None
        mask = mask[:]
        present = np.bincount(mask.ravel(), minlength=256)[: len(self.class_odds)] > 0
        odds = np.where(present, self.class_odds, 0.0)
        if not odds.sum():
            return None
        chosen = rng.choice(len(odds), p=odds / odds.sum())
        pixels = np.flatnonzero(mask == chosen)
        y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
        return (y + 0.5) / mask.shape[0], (x + 0.5) / mask.shape[1]


def _sides(rng: np.random.Generator) -> tuple[int, int]:
    """-1 or 1 for y and x, at random; a child of `rng` draws them, whose own sequence goes on."""
    down, right = (2 * rng.spawn(1)[0].integers(2, size=2) - 1).tolist()
    return down, right


def base_scale(H: int, W: int, short_side: int | None, long_side: int | None) -> float:
    """Factor that scales an image to a short side, with an optional limit of the long side."""
    if short_side is None:
        return 1.0
    scale = short_side / min(H, W)
    return scale if long_side is None else min(scale, long_side / max(H, W))


def fill_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """Padding values for a model's mean: zero after normalisation, as what encoders pad with."""
    return tuple(round(255 * min(max(value, 0.0), 1.0)) for value in mean)


def rare_class_odds(pixels: np.ndarray) -> tuple[float, ...]:
    """(K,) odds from pixel counts: 1 / sqrt(share of pixels), and 0 for absent classes."""
    odds = np.zeros(len(pixels))
    odds[pixels > 0] = 1 / np.sqrt(pixels[pixels > 0] / pixels.sum())
    return tuple((odds / max(odds.sum(), 1e-12)).tolist())


def flipped(image: np.ndarray, axis: int) -> np.ndarray:
    """`cv2.flip` of (H, W, C) that keeps the axis of a single channel."""
    return cv2.flip(image, axis).reshape(image.shape)


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion as in mmsegmentation, by look-up tables: uint8 (H, W, C) in and out.

    Each with probability 0.5: brightness +-32, contrast x0.5-1.5 (at random before or after the
    colour steps), saturation x0.5-1.5, hue +-18 of OpenCV's 180. Saturation and hue only apply to
    images of three channels.
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
