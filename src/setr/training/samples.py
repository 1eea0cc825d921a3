"""Pictures for the log: tested images with ground truth and prediction, and training crops."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from setr.bands import as_rgb
from setr.labels import Labels
from setr.pages.montage import WIDTH, Panel, montage, shrunk, with_legend
from setr.scores.scored_images import ScoredImage


class Samples:
    """Keeps the first tested images, as small as they are shown.

    An `on_image` callback of `evaluate_split`.

    Args:
        count: number of images to keep.
    """

    def __init__(self, labels: Labels, count: int) -> None:
        self.labels, self.count = labels, count
        self.rows: list[list[Panel]] = []
        self.seen: set[int] = set()

    def __call__(self, tested: ScoredImage) -> None:
        """Keep an image, if fewer than `count` are kept."""
        if len(self.rows) >= self.count:
            return
        miou, palette = tested.figures["miou"], self.labels.palette
        said = "prediction" if miou is None else f"prediction, mIoU {100 * miou:.1f}"
        panels = [
            (tested.image, _short(tested.name)),
            (palette[tested.truth], "truth"),
            (palette[tested.prediction], said),
        ]
        self.rows.append([(shrunk(picture, WIDTH), caption) for picture, caption in panels])
        for ids in (tested.truth, tested.prediction):
            self.seen |= set(np.unique(ids).tolist())

    def picture(self) -> np.ndarray | None:
        """One row per image and a legend below, uint8 RGB; None without images."""
        if not self.rows:
            return None
        return with_legend(montage(self.rows), self.labels, sorted(self.seen))


def crops_picture(
    labels: Labels, crops: Iterable[tuple[np.ndarray, np.ndarray, str]]
) -> np.ndarray:
    """One row per training crop and a legend below, uint8 RGB.

    Args:
        crops: image uint8 (H, W, C), training ids (H, W) and name of the image of each; at least
            one.
    """
    rows, seen = [], set()
    for image, mask, name in crops:
        rows.append(((as_rgb(image), _short(name)), (labels.palette[mask], "crop of its mask")))
        seen |= set(np.unique(mask).tolist())
    return with_legend(montage(rows), labels, sorted(seen))


def _short(name: str) -> str:
    """The file name; a whole path may be wider than the picture."""
    return name.rpartition("/")[2]
