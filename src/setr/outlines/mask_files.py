"""Objects that are stored as mask files of the image's size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from setr.data.dataset import require_size
from setr.reading.masks import read_levels, read_mask, read_object


class Cover(NamedTuple):
    """The pixels of a part: `inside` (h, w) bool with its upper left pixel at (top, left)."""

    top: int
    left: int
    inside: np.ndarray


def cropped(inside: np.ndarray) -> Cover:
    """The pixels (H, W) bool of a whole image, cropped to their bounding box.

    A copy, because a view would keep the whole image in memory for each object.
    """
    left, top, width, height = cv2.boundingRect(inside.view(np.uint8))
    return Cover(top, left, inside[top : top + height, left : left + width].copy())


@dataclass(frozen=True)
class MaskFile:
    """A mask file of the image's size; nonzero pixels, or those that are not black, are the object.

    With a `threshold`, the grey levels from it on belong to it, and lossy formats are read, too. An
    `exact` mask must have one value besides 0.
    """

    path: Path
    threshold: int = 0
    exact: bool = False

    def cover(self, size: tuple[int, int]) -> Cover:
        """Pixels of an image of `size` (H, W), cropped to their bounding box.

        Raises:
            SetrError: unreadable, not `exact`, or of another size.
        """
        inside = self.pixels()
        require_size(self.path, inside, size)
        return cropped(inside)

    def pixels(self) -> np.ndarray:
        """The object's pixels (H, W) bool.

        Raises:
            SetrError: unreadable, or not `exact`.
        """
        if self.threshold:
            return np.asarray(read_levels(self.path) >= self.threshold)
        mask = read_object(self.path) if self.exact else read_mask(self.path)
        return np.asarray(mask > 0)


@dataclass(frozen=True)
class Segments:
    """Segments of a COCO panoptic PNG by their ids: red + 256 green + 65536 blue."""

    path: Path
    numbers: tuple[int, ...]

    def cover(self, size: tuple[int, int]) -> Cover:
        """Pixels of an image of `size` (H, W); see `MaskFile.cover`."""
        mask = read_mask(self.path, rgb=True)
        require_size(self.path, mask, size)
        return cropped(np.isin(mask @ np.array([1, 256, 65536]), self.numbers))
