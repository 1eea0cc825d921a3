"""A picture of the first images of a split, with ground truth and prediction."""

from __future__ import annotations

import numpy as np

from setr.labels import Labels
from setr.pages.montage import montage, with_legend
from setr.scores.groups import ScoredImage


class Samples:
    """Keeps the first tested images; an `on_image` callback of `evaluate_split`.

    Args:
        labels: classes and colours.
        count: number of images to keep.
    """

    def __init__(self, labels: Labels, count: int) -> None:
        self.labels, self.count = labels, count
        self.kept: list[ScoredImage] = []

    def __call__(self, tested: ScoredImage) -> None:
        """Keep an image, if fewer than `count` are kept."""
        if len(self.kept) < self.count:
            self.kept.append(tested)

    def picture(self) -> np.ndarray | None:
        """One row per image and a legend below, uint8 RGB; None without images."""
        if not self.kept:
            return None
        palette, rows, seen = self.labels.palette, [], set()
        for tested in self.kept:
            miou = tested.figures["miou"]
            said = "prediction" if miou is None else f"prediction, mIoU {100 * miou:.1f}"
            truth, prediction = palette[tested.truth], palette[tested.prediction]
            name = tested.name.rpartition("/")[2]  # a whole path may be wider than the picture
            rows.append(((tested.image, name), (truth, "truth"), (prediction, said)))
            seen |= {*np.unique(tested.truth).tolist(), *np.unique(tested.prediction).tolist()}
        return with_legend(montage(rows), self.labels, sorted(seen))
