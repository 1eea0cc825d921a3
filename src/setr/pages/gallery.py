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
        self.shown = shown
        self.rows: dict[int, tuple[str, float | None, float | None]] = {}
        self._worst: list[tuple[float, int, ScoredImage]] = []
        self._best: list[tuple[float, int, ScoredImage]] = []

    def __call__(self, tested: ScoredImage) -> None:
        """Add an image."""
        miou = tested.figures["miou"]
        self.rows[tested.number] = (tested.name, miou, tested.figures["pixel_accuracy"])
        if miou is None or not self.shown:
            return
        for heap, key in ((self._worst, -miou), (self._best, miou)):
            if len(heap) < self.shown or heap[0][:2] < (key, tested.number):
                self._keep(heap, (key, tested.number, small(tested)))

    def _keep(
        self, heap: list[tuple[float, int, ScoredImage]], item: tuple[float, int, ScoredImage]
    ) -> None:
        heapq.heappush(heap, item)
        if len(heap) > self.shown:
            heapq.heappop(heap)

    def gather(self) -> None:
        """Add what the other processes of a distributed evaluation collected."""
        parts = gather((self.rows, self._worst, self._best))
        if len(parts) == 1:
            return
        self._worst, self._best = [], []
        for rows, worst, best in parts:
            self.rows.update(rows)
            for heap, items in ((self._worst, worst), (self._best, best)):
                for item in items:
                    self._keep(heap, item)

    @property
    def worst(self) -> list[ScoredImage]:
        """Images with the lowest mIoU, lowest first."""
        return [item[2] for item in sorted(self._worst, key=lambda item: -item[0])]

    @property
    def best(self) -> list[ScoredImage]:
        """Images with the highest mIoU, highest first, without those among the worst."""
        taken = {tested.number for tested in self.worst}
        ordered = sorted(self._best, key=lambda item: -item[0])
        return [item[2] for item in ordered if item[1] not in taken]

    def write_csv(self, path: Path) -> None:
        """Write `image,miou,pixel_accuracy`, a line per image; empty where no pixel counts."""
        rows = [row for _, row in sorted(self.rows.items())]
        write_rows(path, [("image", "miou", "pixel_accuracy"), *rows])


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
