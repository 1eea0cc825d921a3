"""Single images of an evaluation: figures of each, and pictures of the worst and the best."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from setr.distributed import gather
from setr.pages.montage import shrunk
from setr.pages.page import WIDTH
from setr.scores.intervals import paired_difference
from setr.scores.scored_images import ScoredImage
from setr.writing import write_rows


class Gallery:
    """Collects tested images; give it to `evaluate_split` as `on_image`.

    Two numbers are kept of each image, pictures only of the extremes, shrunk as for a page.

    Args:
        shown: how many of the worst and of the best images to keep with their pictures.
    """

    def __init__(self, shown: int = 6) -> None:
        self.rows: dict[int, tuple[str, float | None, float | None]] = {}
        self._worst, self._best = Extremes(shown), Extremes(shown)

    def __call__(self, tested: ScoredImage) -> None:
        """Add an image."""
        miou = tested.figures["miou"]
        self.rows[tested.number] = (tested.name, miou, tested.figures["pixel_accuracy"])
        if miou is not None:
            self._worst.add(-miou, tested)
            self._best.add(miou, tested)

    def gather(self) -> None:
        """Add what the other processes of a distributed evaluation collected."""
        parts = gather((self.rows, self._worst, self._best))
        if len(parts) == 1:
            return
        self._worst, self._best = (Extremes(own.count) for own in (self._worst, self._best))
        for rows, worst, best in parts:
            self.rows.update(rows)
            for own, other in ((self._worst, worst), (self._best, best)):
                for key, _, tested in other.kept:
                    own.add(key, tested)

    @property
    def worst(self) -> list[ScoredImage]:
        """Images with the lowest mIoU, lowest first."""
        return self._worst.images()

    @property
    def best(self) -> list[ScoredImage]:
        """Images with the highest mIoU, highest first, without those among the worst."""
        taken = {tested.number for tested in self.worst}
        return [tested for tested in self._best.images() if tested.number not in taken]

    def write_csv(self, path: Path) -> None:
        """Write `image,miou,pixel_accuracy`, a line per image; empty where no pixel counts."""
        rows = [row for _, row in sorted(self.rows.items())]
        write_rows(path, [("image", "miou", "pixel_accuracy"), *rows])


class Extremes:
    """Keeps the images with the largest keys, shrunk as for a page.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept: list[tuple[Any, int, ScoredImage]] = []  # a heap of keys, numbers and images

    def add(self, key: Any, tested: ScoredImage) -> None:
        """Keep an image if its key is among the largest so far."""
        if self.count and (len(self.kept) < self.count or self.kept[0][:2] < (key, tested.number)):
            heapq.heappush(self.kept, (key, tested.number, small(tested)))
        if len(self.kept) > self.count:
            heapq.heappop(self.kept)

    def images(self) -> list[ScoredImage]:
        """Those that are kept, by their keys, the largest first."""
        ordered = sorted(self.kept, key=lambda item: item[0], reverse=True)
        return [tested for *_, tested in ordered]


def small(tested: ScoredImage) -> ScoredImage:
    """The same with pictures at most as large as a page shows them."""
    truth, prediction = (
        shrunk(ids, WIDTH, cv2.INTER_NEAREST) for ids in (tested.truth, tested.prediction)
    )
    confidence, measured = (
        None if values is None else shrunk(values, WIDTH)
        for values in (tested.confidence, tested.measured)
    )
    return tested._replace(
        image=shrunk(tested.image, WIDTH),
        truth=truth,
        prediction=prediction,
        confidence=confidence,
        measured=measured,
    )


def paired(ours: Gallery, theirs: Gallery) -> dict[str, Any]:
    """`paired_difference` of the mIoU per image, over the images of both models."""
    pairs = [
        (row[1], theirs.rows[index][1])
        for index, row in sorted(ours.rows.items())
        if index in theirs.rows and row[1] is not None and theirs.rows[index][1] is not None
    ]
    return paired_difference(*np.array(pairs, dtype=np.float64).reshape(-1, 2).T)
