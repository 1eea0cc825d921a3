"""Pictures of an evaluation: the first images of a split beside their truth and prediction."""

from __future__ import annotations

import numpy as np

from setr.evaluation import ScoredImage
from setr.labels import Labels
from setr.pages.montage import montage, with_legend


class Samples:
    """Keeps the first tested images; give it to `evaluate_split` as `on_image`.

    Args:
        labels: classes and colours.
        count: images kept.
    """

    def __init__(self, labels: Labels, count: int) -> None:
        self.labels, self.count = labels, count
        self.kept: list[ScoredImage] = []

    def __call__(self, tested: ScoredImage) -> None:
        """Take one image."""
        if len(self.kept) < self.count:
            self.kept.append(tested)

    def picture(self) -> np.ndarray | None:
        """A row per image with a legend below, uint8 RGB; None if there is no image."""
        if not self.kept:
            return None
        palette, rows, seen = self.labels.palette, [], set()
        for tested in self.kept:
            miou = tested.figures["miou"]
            said = "prediction" if miou is None else f"prediction, mIoU {100 * miou:.1f}"
            truth, prediction = palette[tested.truth], palette[tested.prediction]
            name = tested.name.rpartition("/")[2]  # a folder would be wider than the picture
            rows.append(((tested.image, name), (truth, "truth"), (prediction, said)))
            seen |= {*np.unique(tested.truth).tolist(), *np.unique(tested.prediction).tolist()}
        return with_legend(montage(rows), self.labels, sorted(seen))
