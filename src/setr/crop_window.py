"""A crop of a resized image, computed from the original.

The window is mapped back to the original, and only the region that it needs is read and resampled.
Rotation is part of the same resampling. Images are interpolated bilinearly, masks by nearest
neighbour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

LEAN = 1 / 256
"""Source pixels by which nearest neighbours lean; enough where two are equally near, and too little
to matter elsewhere."""


@dataclass(frozen=True)
class CropWindow:
    """A crop of a resized image, computed without resizing the rest.

    Args:
        source: (H, W) of the original image.
        resized: (H', W') of the resized image.
        origin: (top, left) of the crop in the resized image.
        size: (height, width) of the crop.
        angle: clockwise rotation of the content about its centre, in degrees.
        lean: the side, -1 or 1 for y and x, of a nearest neighbour where two are equally near, as
            everywhere at half size; 0 leaves it to OpenCV.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    origin: tuple[int, int]
    size: tuple[int, int]
    angle: float = 0.0
    lean: tuple[int, int] = (0, 0)

    @property
    def source_region(self) -> tuple[slice, slice]:
        """Rows and columns of the original image that bilinear interpolation needs; never empty."""
        region = []
        for first, length, n, N in zip(
            *self._bounding_box(), self.source, self.resized, strict=True
        ):
            last = min(first + length, N)
            region.append(slice(max(0, first * n // N - 1), min(n, -(-last * n // N) + 1)))
        return region[0], region[1]

    def _bounding_box(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Origin and size of the rotated window's bounding box in the resized image."""
        if not self.angle:
            return self.origin, self.size
        height, width = self.size
        corners = [[x, y, 1] for x in (-1, width) for y in (-1, height)]
        x, y, _ = self._rotation() @ np.transpose(corners)
        (top, bottom), (left, right) = (
            (max(0, first + math.floor(axis.min())), first + math.ceil(axis.max()) + 1)
            for first, axis in zip(self.origin, (y, x), strict=True)
        )
        return (top, left), (bottom - top, right - left)

    def shows(self, y: float, x: float) -> bool:
        """Whether a point of the resized image, in pixels from its top left corner, is in the crop.

        Rotation may turn a point out of the crop that is inside the window without it.
        """
        (top, left), (height, width) = self.origin, self.size
        place = np.array([x - left - 0.5, y - top - 0.5, 1])  # between pixel centres
        x, y, _ = np.linalg.solve(self._rotation(), place) + 0.5
        return bool(0 <= y < height and 0 <= x < width)

    def cut(
        self,
        array: np.ndarray,
        *,
        nearest: bool,
        fill: int | tuple[int, ...],
        corner: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """The crop of an array uint8 (H, W[, C]), padded with `fill` to its full size.

        The array is the whole source, or its `source_region`, which begins at `corner` (y, x).
        """
        return self.pad(self.resample(array, nearest=nearest, fill=fill, corner=corner), fill)

    def resample(
        self,
        array: np.ndarray,
        *,
        nearest: bool,
        fill: int | tuple[int, ...],
        corner: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """As `cut`, without padding; rotated windows have their full size."""
        (top, left), (height, width) = self.origin, self.size
        inside = min(height, self.resized[0] - top), min(width, self.resized[1] - left)
        y, x = corner
        flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
        matrix = self._to_source(corner)
        if nearest:
            matrix[:, 2] += LEAN * np.array(self.lean[::-1])
        if self.angle:
            matrix = matrix @ self._rotation()
            return _warped(array, matrix, (width, height), flags, cv2.BORDER_CONSTANT, fill)
        if self.source == self.resized:
            return array[top - y : top - y + inside[0], left - x : left - x + inside[1]]
        return _warped(array, matrix, (inside[1], inside[0]), flags, cv2.BORDER_REPLICATE, fill)

    def pad(self, part: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        """Pad the result of `resample` on the right and below; the array is contiguous."""
        if part.shape[:2] == self.size:
            return np.ascontiguousarray(part)
        out = np.empty((*self.size, *part.shape[2:]), dtype=part.dtype)
        out[...] = fill
        out[: part.shape[0], : part.shape[1]] = part
        return out

    def _to_source(self, corner: tuple[int, int]) -> np.ndarray:
        """(2, 3) matrix from window (x, y) to source (x, y), between pixel centres.

        source = (target + origin + 0.5) * scale - 0.5 - corner.
        """
        (top, left), (y, x) = self.origin, corner
        sy, sx = self.source[0] / self.resized[0], self.source[1] / self.resized[1]
        return np.array([[sx, 0, (left + 0.5) * sx - 0.5 - x], [0, sy, (top + 0.5) * sy - 0.5 - y]])

    def _rotation(self) -> np.ndarray:
        """(3, 3) rotation of window (x, y) about the centre of the part inside the image."""
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
    """`cv2.warpAffine` of (H, W[, C]) to (width, height), for any number of channels."""
    channels = array.shape[2:]
    if not channels or channels == (3,):
        return cv2.warpAffine(array, matrix, size, flags=flags, borderMode=border, borderValue=fill)
    values = fill if isinstance(fill, tuple) else (fill,) * channels[0]
    parts = [
        cv2.warpAffine(
            np.ascontiguousarray(array[..., i : i + 4]),  # OpenCV fills at most four channels
            matrix,
            size,
            flags=flags,
            borderMode=border,
            borderValue=values[i : i + 4],
        ).reshape(size[1], size[0], -1)
        for i in range(0, channels[0], 4)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
