"""All metrics of an evaluation, in one streaming object.

Predictions are counted image by image and not kept. All state is integer, so the results are
identical for any order of images and any number of threads and processes.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from setr.arguments.choices import Absent
from setr.distributed import add_up, gather, world
from setr.errors import UsageError
from setr.labels import IGNORE
from setr.metrics import ConfusionMatrix, summarize
from setr.processes.quota import cpus
from setr.scores.boundary import BoundaryCounts
from setr.scores.by_group import GroupCounts, Groups
from setr.scores.calibration import Calibration
from setr.scores.intervals import STEPS, Bootstrap, image_miou
from setr.scores.regions import RegionCounts
from setr.scores.thresholds import Thresholds

THREADS = min(4, cpus())
"""They count boundaries and regions, up to seconds per image, while the model runs the next."""
AHEAD_PIXELS = 16_000_000
"""Limit on the pixels waiting for these threads; the model waits when it is exceeded."""


class Scorecard:
    """Counts of one evaluation.

    Args:
        classes: K names.
        device: of the predictions.
        detailed: also count boundaries, regions, calibration and bootstrap replicates; otherwise
            only the confusion matrix.
        absent: how means treat classes that occur in neither truth nor prediction, see
            `setr.metrics`.
        groups: of the images; intervals are then over groups, and there are figures of each.

    Raises:
        SetrError: another value for `absent`.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        device: torch.device | str = "cpu",
        *,
        detailed: bool = True,
        absent: Absent = "skip",
        groups: Groups | None = None,
    ) -> None:
        if absent not in get_args(Absent):
            raise UsageError(f"absent {absent!r}: give {' or '.join(get_args(Absent))}")
        K = len(classes)
        self.classes, self.detailed, self.absent = classes, detailed, absent
        self.confusion = ConfusionMatrix(K, device)
        # images, images with an mIoU, sum of per-image mIoU in steps
        self.totals = np.zeros(3, dtype=np.int64)
        self.failed: list[str] = []
        self.calibration = Calibration(device=device)
        self.thresholds = Thresholds(device) if K == 2 else None
        self.groups = GroupCounts(groups, K) if groups else None
        self._boundary, self._regions = BoundaryCounts(K), RegionCounts(K)
        self._threads = ThreadPoolExecutor(THREADS, "score")  # they end with this object
        # pixels of each submitted image and its counts
        self._pending: deque[tuple[int, Future[tuple[BoundaryCounts, RegionCounts]]]] = deque()
        self.bootstrap = Bootstrap(K, replicates=1000 if detailed else 1)

    @property
    def boundary(self) -> BoundaryCounts:
        """Boundary counts of all images so far."""
        self._collect(0)
        return self._boundary

    @property
    def regions(self) -> RegionCounts:
        """Region counts of all images so far."""
        self._collect(0)
        return self._regions

    def _collect(self, max_pixels: int) -> None:
        """Add finished counts until at most `max_pixels` are pending."""
        while sum(pixels for pixels, _ in self._pending) > max_pixels:
            boundary, regions = self._pending.popleft()[1].result()
            self._boundary.counts += boundary.counts
            self._regions.counts += regions.counts
            self._regions.matches += regions.matches

    def update(
        self, index: int, prediction: Tensor, truth: Tensor, confidence: Tensor | None = None
    ) -> dict[str, float | None]:
        """Count one image.

        Args:
            index: of the image in the whole split, not in this process's part.
            prediction: ids (H, W).
            truth: training ids (H, W), `IGNORE` is not counted.
            confidence: probability of the predicted class (H, W).

        Returns:
            `miou` and `pixel_accuracy` of this image; None where no pixel is labelled.

        Raises:
            SetrError: sizes differ.
        """
        counts = self.confusion.update(prediction, truth)
        K = len(self.classes)
        matrix = counts[:K].cpu().numpy()
        miou = image_miou(matrix)
        self.totals[0] += 1
        if miou is not None:
            self.totals[1:] += 1, round(miou * STEPS)
        if self.groups:
            self.groups.update(index, matrix)
        if self.detailed:
            sampled = self.groups.groups.of_image[index] if self.groups else index
            self.bootstrap.update(sampled, matrix)
            arrays = prediction.cpu().numpy(), truth.cpu().numpy()
            counting = self._threads.submit(_boundary_and_regions, K, *arrays)
            self._pending.append((truth.numel(), counting))
            self._collect(AHEAD_PIXELS)
            if confidence is not None:
                labelled = truth != IGNORE
                sure, ids, true = confidence[labelled], prediction[labelled], truth[labelled]
                self.calibration.update(sure, ids == true)
                if self.thresholds:
                    self.thresholds.update(ids, true, sure)
        pixels = matrix.sum()
        accuracy = float(np.trace(matrix) / pixels) if pixels else None
        return {"miou": miou, "pixel_accuracy": accuracy}

    def fail(self, problem: str) -> None:
        """Record an image that could not be read, by a line that names it."""
        self.failed.append(problem)

    def reduce(self) -> None:
        """Sum the counts over all processes, if there are several."""
        if world() == 1:
            return
        arrays = [self.totals, self.boundary.counts, self.regions.counts, self.regions.matches,
                  self.bootstrap.counts, self.bootstrap.images]  # fmt: skip
        arrays += [self.groups.counts, self.groups.images] if self.groups else []
        for array in arrays:
            tensor = torch.from_numpy(array).to(self.confusion.counts.device)
            array[...] = add_up(tensor).cpu().numpy()
        add_up(self.confusion.counts)
        add_up(self.calibration.counts)
        if self.thresholds:
            add_up(self.thresholds.counts)
        self.failed = sorted(problem for part in gather(self.failed) for problem in part)

    def summary(self) -> dict[str, Any]:
        """The metrics.

        Returns:
            Those of `summarize`, `images` (number counted), `failed` (a line per unreadable image),
            with groups `groups`, and if detailed `image_miou`, `intervals`, `boundary`,
            `recall_by_size`, `regions`, `confusion` and, where confidences were given,
            `calibration` and, of two classes, `thresholds`.
        """
        figures = summarize(self.confusion.matrix, self.classes, absent=self.absent)
        images, labelled, steps = (int(n) for n in self.totals)
        figures |= {"images": images, "failed": self.failed}
        if self.groups:
            figures["groups"] = self.groups.summary(self.classes)
        if not self.detailed:
            return figures
        figures |= {
            "image_miou": steps / STEPS / labelled if labelled else None,
            "intervals": self.bootstrap.summary(
                absent=self.absent, groups=self.groups.labelled if self.groups else None
            ),
            "boundary": self.boundary.summary(self.classes),
            "recall_by_size": self.regions.summary(),
            "regions": self.regions.by_class(self.classes),
            "confusion": self.confusion.matrix.tolist(),
        }
        calibration = self.calibration.summary()
        if calibration["ece"] is not None:
            figures["calibration"] = calibration
            curve = self.thresholds.summary(self.classes) if self.thresholds else None
            figures |= {"thresholds": curve} if curve else {}
        return figures


def _boundary_and_regions(
    K: int, prediction: np.ndarray, truth: np.ndarray
) -> tuple[BoundaryCounts, RegionCounts]:
    """Counts for one image."""
    boundary, regions = BoundaryCounts(K), RegionCounts(K)
    boundary.update(prediction, truth)
    regions.update(prediction, truth)
    return boundary, regions
