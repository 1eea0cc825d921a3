"""Everything that is counted of a test, in one streaming object.

Predictions come in image by image and are not kept. All state is integers, so the figures are the
same bits for any order of images and any number of threads and processes.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from setr.arguments.choices import Absent
from setr.errors import USAGE, SetrError
from setr.labels import IGNORE
from setr.metrics import ConfusionMatrix, summarize
from setr.processes.quota import cpus
from setr.scores.boundary import BoundaryCounts
from setr.scores.calibration import Calibration
from setr.scores.intervals import STEPS, Bootstrap, image_miou
from setr.scores.regions import RegionRecall

THREADS = min(4, cpus())
"""They follow outlines and regions, up to seconds per image, while the model runs the next."""
AHEAD_PIXELS = 16_000_000
"""Of images that wait for them; one image alone may be larger, and the model then waits for it."""


class Scorecard:
    """Counts of one test.

    Args:
        classes: K names.
        device: where predictions come from.
        detailed: also count boundaries, regions, calibration and bootstrap replicates; without,
            only the confusion matrix.
        absent: what classes without a pixel in truth and prediction add to the means.

    Raises:
        SetrError: another rule for `absent`.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        device: torch.device | str = "cpu",
        *,
        detailed: bool = True,
        absent: Absent = "skip",
    ) -> None:
        if absent not in get_args(Absent):
            raise SetrError(f"absent {absent!r}: give {' or '.join(get_args(Absent))}", code=USAGE)
        K = len(classes)
        self.classes, self.detailed, self.absent = classes, detailed, absent
        self.confusion = ConfusionMatrix(K, device)
        self.totals = np.zeros(3, dtype=np.int64)  # images, images with an mIoU, its sum in steps
        self.failed: list[str] = []
        self.calibration = Calibration(device=device)
        self._boundary, self._regions = BoundaryCounts(K), RegionRecall(K)
        self._threads = ThreadPoolExecutor(THREADS, "score")  # they end with this object
        self._waiting: deque[tuple[int, Future[tuple[np.ndarray, np.ndarray]]]] = deque()
        self.bootstrap = Bootstrap(K, replicates=1000 if detailed else 1)

    @property
    def boundary(self) -> BoundaryCounts:
        """Of all images so far."""
        self._collect(0)
        return self._boundary

    @property
    def regions(self) -> RegionRecall:
        """Of all images so far."""
        self._collect(0)
        return self._regions

    def _collect(self, pixels: int) -> None:
        """Add what threads have counted, until at most so many pixels wait."""
        while sum(waiting for waiting, _ in self._waiting) > pixels:
            boundary, regions = self._waiting.popleft()[1].result()
            self._boundary.counts += boundary
            self._regions.counts += regions

    def update(
        self, index: int, prediction: Tensor, truth: Tensor, confidence: Tensor | None = None
    ) -> dict[str, float | None]:
        """Count one image.

        Args:
            index: its number in the whole split, whichever process has it.
            prediction: ids (H, W).
            truth: training ids (H, W), `IGNORE` is not counted.
            confidence: probability of the predicted class (H, W).

        Returns:
            `miou` and `pixel_accuracy` of this image alone; None where nothing is counted.

        Raises:
            SetrError: sizes differ.
        """
        counts = self.confusion.update(prediction, truth)
        K = len(self.classes)
        matrix = counts[:K].cpu().numpy()
        own = image_miou(matrix)
        self.totals[0] += 1
        if own is not None:
            self.totals[1:] += 1, round(own * STEPS)
        if self.detailed:
            self.bootstrap.update(index, matrix)
            guess, real = prediction.cpu().numpy(), truth.cpu().numpy()
            self._waiting.append((real.size, self._threads.submit(_shapes, K, guess, real)))
            self._collect(AHEAD_PIXELS)
            if confidence is not None:
                counted = truth != IGNORE
                self.calibration.update(confidence[counted], (prediction == truth)[counted])
        pixels = matrix.sum()
        accuracy = float(np.trace(matrix) / pixels) if pixels else None
        return {"miou": own, "pixel_accuracy": accuracy}

    def fail(self, problem: str) -> None:
        """Note an image that could not be read, by a line that names it."""
        self.failed.append(problem)

    def reduce(self) -> None:
        """Add up the counts of all processes, if there are several; exact, since integers."""
        if not torch.distributed.is_initialized():
            return
        arrays = [self.totals, self.boundary.counts, self.regions.counts,
                  self.bootstrap.counts, self.bootstrap.images]  # fmt: skip
        tensors = [self.confusion.counts, self.calibration.counts]
        for array in arrays:
            tensor = torch.from_numpy(array).to(self.confusion.counts.device)
            torch.distributed.all_reduce(tensor)
            array[...] = tensor.cpu().numpy()
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
        failed: list[list[str]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(failed, self.failed)
        self.failed = sorted(problem for part in failed for problem in part)

    def summary(self) -> dict[str, Any]:
        """The figures.

        Returns:
            Those of `summarize`, `images` (number counted), `failed` (a line per unreadable one),
            and if detailed `image_miou`, `intervals`, `boundary`, `recall_by_size`, `confusion`
            and, where confidences were given, `calibration`.
        """
        figures = summarize(self.confusion.matrix, self.classes, absent=self.absent)
        images, counted, steps = (int(n) for n in self.totals)
        figures |= {"images": images, "failed": self.failed}
        if not self.detailed:
            return figures
        figures |= {
            "image_miou": steps / STEPS / counted if counted else None,
            "intervals": self.bootstrap.summary(absent=self.absent),
            "boundary": self.boundary.summary(self.classes),
            "recall_by_size": self.regions.summary(),
            "confusion": self.confusion.matrix.tolist(),
        }
        calibration = self.calibration.summary()
        if calibration["ece"] is not None:
            figures["calibration"] = calibration
        return figures


def _shapes(K: int, prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of one image: those of `BoundaryCounts` and of `RegionRecall`."""
    boundary, regions = BoundaryCounts(K), RegionRecall(K)
    boundary.update(prediction, truth)
    regions.update(prediction, truth)
    return boundary.counts, regions.counts
