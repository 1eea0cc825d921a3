"""A streaming confusion matrix and the figures read off it.

One matrix over the whole set, truth in rows; memory does not depend on the number of images.
IoU = TP / (TP + FP + FN). Classes that occur in neither truth nor prediction have no IoU (None) and
are left out of the means, as mmsegmentation and Cityscapes do; `absent="zero"` counts them as 0 as
the ADE20K server's script does. A predicted id outside the classes is wrong for the truth class and
counts for no other.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from setr.errors import SetrError
from setr.labels import IGNORE

Absent = Literal["skip", "zero"]


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over counted pixels.

    Args:
        num_classes: K, at most 255.
        device: where the counts live.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        # K+1 rows and columns: the extra row takes ignored truth, the extra column foreign ids
        side = num_classes + 1
        self.counts = torch.zeros(side * side, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count one image or batch.

        Args:
            prediction: ids of any shape, integer.
            truth: training ids of the same shape; `IGNORE` is not counted.

        Raises:
            SetrError: shapes differ.
        """
        if prediction.shape != truth.shape:
            raise SetrError(
                f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in "
                "size; resize the prediction (nearest) before scoring"
            )
        side = self.num_classes + 1
        rows = truth.to(torch.int64).clamp_(max=self.num_classes).mul_(side)
        rows += prediction.to(torch.int64).clamp(max=self.num_classes)
        self.counts += torch.bincount(rows.flatten(), minlength=side * side)

    @property
    def matrix(self) -> np.ndarray:
        """(K, K+1) int64 counts, truth in rows; the last column holds foreign ids."""
        side = self.num_classes + 1
        return self.counts.cpu().numpy().reshape(side, side)[: self.num_classes]

    def summary(self, classes: tuple[str, ...], *, absent: Absent = "skip") -> dict[str, Any]:
        """The figures, as fractions; None where undefined.

        Returns:
            `miou`, `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou`, and `iou` and
            `accuracy` by class name.
        """
        return summarize(self.matrix, classes, absent=absent)


def summarize(
    matrix: np.ndarray, classes: tuple[str, ...], *, absent: Absent = "skip"
) -> dict[str, Any]:
    """Figures of a (K, K+1) matrix of counts; see `ConfusionMatrix.summary`."""
    K = len(classes)
    hits = np.diagonal(matrix[:, :K]).astype(np.float64)
    truth = matrix.sum(axis=1).astype(np.float64)
    predicted = matrix[:, :K].sum(axis=0).astype(np.float64)
    union = truth + predicted - hits
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, accuracy = hits / union, hits / truth
    total = truth.sum()
    fill = 0.0 if absent == "zero" else np.nan
    return {
        "miou": _mean(np.where(union > 0, iou, fill)),
        "pixel_accuracy": float(hits.sum() / total) if total else None,
        "mean_accuracy": _mean(np.where(truth > 0, accuracy, fill)),
        "frequency_weighted_iou": (
            float((truth[truth > 0] * iou[truth > 0]).sum() / total) if total else None
        ),
        "iou": {c: _plain(v) for c, v in zip(classes, iou, strict=True)},
        "accuracy": {c: _plain(v) for c, v in zip(classes, accuracy, strict=True)},
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def class_pixels(masks: Any, num_classes: int) -> np.ndarray:
    """(K,) pixel counts over an iterable of masks of training ids; ignored pixels left out."""
    counts = np.zeros(256, dtype=np.int64)
    for mask in masks:
        counts += np.bincount(mask.ravel(), minlength=256)
    counts[IGNORE] = 0
    return counts[:num_classes]
