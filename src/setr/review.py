"""Reviews the labels of a split with a trained model: which of them look wrong, and how.

The images are predicted once, as in an evaluation. Of each of them about a kilobyte is kept: what
`label_quality.py` and `misplaced.py` find. `suspects.py` decides at the end.
"""

from __future__ import annotations

import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from setr.data.dataset import Dataset
from setr.data.survey import difference_hash
from setr.evaluation import PassOptions, measure_split
from setr.labels import IGNORE
from setr.model_info import ModelInfo
from setr.opening import Trained
from setr.pages.gallery import Extremes
from setr.scores.label_quality import label_quality, likelihood_sums, suspicious_regions
from setr.scores.misplaced import agreement, find_misplaced
from setr.scores.scorecard import AHEAD_PIXELS, THREADS
from setr.scores.scored_images import ScoredImage
from setr.scores.suspects import CELLS, Looked, Suspect, find_suspects

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Review:
    """The result of a review.

    Attributes:
        rows: every image by its number.
        suspects: the labels that look wrong, the worst first.
        thresholds: (K,) confidence from which a region counts, NaN for classes never labelled.
        pixels: (K,) labelled pixels.
        failed: a line for each image that could not be read.
        pictures: of the images with the lowest quality, by their number.
        protocol: how the images were predicted.
        complete: whether all images were seen.
    """

    rows: dict[int, Looked]
    suspects: list[Suspect]
    thresholds: np.ndarray
    pixels: np.ndarray
    failed: list[str]
    pictures: dict[int, ScoredImage]
    protocol: str
    complete: bool


def likelihood(scores: Tensor, truth: Tensor) -> Tensor:
    """Probability of the true class from scores (B, K, r, W) and ids (B, r, W); 1 if ignored."""
    return F.cross_entropy(
        scores, truth.long(), ignore_index=IGNORE, reduction="none"
    ).neg_().exp_()  # fmt: skip


class Reviewer:
    """Looks at each image of an evaluation, in threads next to the model.

    Args:
        num_classes: K.
        shown: how many images to keep pictures of.
    """

    def __init__(self, num_classes: int, shown: int = 0) -> None:
        self.num_classes, self._worst = num_classes, Extremes(shown)
        self.rows: dict[int, Looked] = {}
        self.pixels = np.zeros(num_classes, np.int64)
        self.likelihoods = np.zeros(num_classes, np.float64)
        self._threads = ThreadPoolExecutor(THREADS, "review")
        self._pending: deque[tuple[ScoredImage, Future[Looked]]] = deque()

    def __call__(self, scored: ScoredImage) -> None:
        """Look at one image."""
        self._pending.append((scored, self._threads.submit(_look, scored, self.num_classes)))
        self._collect(AHEAD_PIXELS)

    def finish(self) -> None:
        """Wait for all images."""
        self._collect(0)

    def _collect(self, max_pixels: int) -> None:
        while self._pending and sum(s.truth.size for s, _ in self._pending) > max_pixels:
            scored, future = self._pending.popleft()
            looked = future.result()
            self.pixels += looked.sums[0]
            self.likelihoods += looked.sums[1]
            self.rows[scored.number] = looked._replace(sums=(np.empty(0), np.empty(0)))
            if looked.quality is not None:
                self._worst.add((looked.misplaced is not None, -looked.quality), scored)

    @property
    def pictures(self) -> dict[int, ScoredImage]:
        """The images with the lowest quality, shrunk, by their number."""
        return {scored.number: scored for scored in self._worst.images()}


def _look(scored: ScoredImage, num_classes: int) -> Looked:
    truth, prediction = scored.truth, scored.prediction
    assert scored.confidence is not None
    assert scored.measured is not None
    pixels, sums = likelihood_sums(truth, scored.measured, num_classes)
    present = np.flatnonzero(pixels)
    image = np.ascontiguousarray(scored.image)
    rows, columns = (((np.arange(CELLS) + 0.5) * n / CELLS).astype(int) for n in truth.shape)
    cells = np.ix_(rows, columns)
    return Looked(
        scored.name,
        truth.shape,
        label_quality(truth, scored.measured),
        agreement(truth, prediction),
        find_misplaced(truth, prediction),
        int(present[0]) if len(present) == 1 else None,
        suspicious_regions(truth, prediction, scored.confidence, scored.measured),
        (zlib.crc32(image.data), zlib.crc32(np.ascontiguousarray(truth).data)),
        difference_hash(image),
        np.stack([truth[cells], prediction[cells]]),
        (pixels, sums),
    )


def review_split(
    model: Trained,
    info: ModelInfo,
    dataset: Dataset,
    *,
    shown: int = 0,
    **options: Unpack[PassOptions],
) -> Review:
    """Predict a split under `info.protocol` and find labels that contradict the predictions.

    Args:
        model: on any device.
        dataset: a split with the classes of the model.
        shown: how many images to keep pictures of.
        options: those of `evaluate_split`. Once `stopped` returns true, the review ends there.

    Raises:
        SetrError: as `evaluate_split`.
    """
    reviewer = Reviewer(len(dataset.labels.classes), shown)
    failed, complete = measure_split(model, info, dataset, likelihood, reviewer, **options)
    reviewer.finish()
    with np.errstate(invalid="ignore"):
        thresholds = reviewer.likelihoods / reviewer.pixels
    return Review(
        reviewer.rows,
        find_suspects(reviewer.rows, thresholds, dataset),
        thresholds,
        reviewer.pixels,
        failed,
        reviewer.pictures,
        info.protocol.describe(),
        complete,
    )
