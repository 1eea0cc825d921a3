"""A streaming confusion matrix and the metrics computed from it.

One matrix is accumulated over the whole set, truth in rows; memory does not depend on the number of
images. IoU = TP / (TP + FP + FN). Classes that occur in neither truth nor prediction have no IoU
(None) and are left out of the means, as in mmsegmentation and Cityscapes; `absent="zero"` counts
them as 0, as in the ADE20K server's script. A predicted id outside the classes is a false negative
of the truth class and a false positive of none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr.arguments.choices import Absent
from setr.errors import SetrError
from setr.labels import IGNORE


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over labelled pixels.

    Args:
        num_classes: K, 1 to 255.
        device: of the counts.

    Raises:
        SetrError: another number of classes.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_classes <= IGNORE:
            raise SetrError(f"num_classes {num_classes}: ids are 8-bit; give 1 to {IGNORE}")
        self.num_classes = num_classes
        # K+1 rows and columns: the last row is ignored truth, the last column ids outside 0..K-1
        side = num_classes + 1
        self.counts = torch.zeros(side * side, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Count one image or batch.

        Args:
            prediction: ids of any shape, integer.
            truth: training ids of the same shape; `IGNORE` is not counted.

        Returns:
            The counts that were added, (K+1, K+1), see `confusion`.

        Raises:
            SetrError: shapes differ.
        """
        if prediction.shape != truth.shape:
            raise SetrError(
                f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in "
                "size; resize the prediction (nearest) before scoring"
            )
        added = confusion(prediction, truth, self.num_classes)
        self.counts += added.flatten()
        return added

    @property
    def matrix(self) -> np.ndarray:
        """(K, K+1) int64 counts, truth in rows; the last column is for ids outside the classes."""
        side = self.num_classes + 1
        return self.counts.cpu().numpy().reshape(side, side)[: self.num_classes]

    def summary(self, classes: tuple[str, ...], *, absent: Absent = "skip") -> dict[str, Any]:
        """The metrics, as fractions; None where undefined.

        Returns:
            `miou`, `mean_dice`, `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou`,
            `kappa` (-1 to 1); by class name `iou`, `dice` (2 TP / (truth + predicted), the F1
            score), `accuracy` (TP / truth, the recall) and `precision` (TP / predicted); and
            `absent`, as given.
        """
        return summarize(self.matrix, classes, absent=absent)


def confusion(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix (K+1, K+1) int64 of ids of equal shape, truth in rows.

    The last row is for ignored truth, the last column for predicted ids outside the classes.
    """
    K = num_classes
    if prediction.dtype != torch.uint8:
        prediction = prediction.where((prediction >= 0) & (prediction < K), K)
    # int32 keys: three times as fast as int64, and (K+1)^2 fits
    keys = truth.clamp(max=K).to(torch.int32).mul_(K + 1).add_(prediction.clamp(max=K))
    counts: Tensor = torch.bincount(keys.flatten(), minlength=(K + 1) ** 2)
    return counts.reshape(K + 1, K + 1)


def summarize(
    matrix: np.ndarray, classes: tuple[str, ...], *, absent: Absent = "skip"
) -> dict[str, Any]:
    """Metrics of a confusion matrix (K, K+1); see `ConfusionMatrix.summary`."""
    hits, truth, predicted = (pixels.astype(np.float64) for pixels in class_pixels(matrix))
    union = truth + predicted - hits
    iou, accuracy = ratio(hits, union), ratio(hits, truth)
    dice = ratio(2 * hits, truth + predicted)
    total = truth.sum()
    fill = 0.0 if absent == "zero" else np.nan
    return {
        "miou": mean_of(np.where(union > 0, iou, fill)),
        "mean_dice": mean_of(np.where(union > 0, dice, fill)),
        "pixel_accuracy": float(hits.sum() / total) if total else None,
        "mean_accuracy": mean_of(np.where(truth > 0, accuracy, fill)),
        "frequency_weighted_iou": (
            float((truth[truth > 0] * iou[truth > 0]).sum() / total) if total else None
        ),
        "kappa": kappa(hits, truth, predicted),
        "iou": by_class(classes, iou),
        "dice": by_class(classes, dice),
        "accuracy": by_class(classes, accuracy),
        "precision": by_class(classes, ratio(hits, predicted)),
        "absent": absent,
    }


def class_pixels(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (K,) of each class in both, in the truth, and in the prediction; matrix (K, K+1)."""
    inside = matrix[:, : len(matrix)]
    return np.diagonal(inside), matrix.sum(axis=1), inside.sum(axis=0)


def kappa(hits: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> float | None:
    """Cohen's kappa: agreement beyond that of chance, with the same shares of the classes.

    Args:
        hits: (K,) pixels of each class in both.
        truth: (K,) pixels of each class in the truth.
        predicted: (K,) pixels of each class in the prediction.

    Returns:
        1 for agreement everywhere, 0 for that of chance; None without pixels, or with only one
        class.
    """
    total = float(truth.sum())
    if not total:
        return None
    chance = float((truth / total * (predicted / total)).sum())
    return (float(hits.sum()) / total - chance) / (1 - chance) if chance < 1 else None


def by_class(classes: tuple[str, ...], values: np.ndarray) -> dict[str, float | None]:
    """(K,) values by class name; NaN becomes None."""
    return dict(zip(classes, as_numbers(values), strict=True))


def as_numbers(values: np.ndarray) -> list[float | None]:
    """Values (N,) for JSON; NaN becomes None."""
    return [None if np.isnan(v) else float(v) for v in values]


def mean_of(values: np.ndarray) -> float | None:
    """Mean of the values that are not NaN; None without any."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole as float64, NaN where the whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(part / np.where(whole > 0, whole, np.nan), dtype=np.float64)
