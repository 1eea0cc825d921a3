"""Precision and recall of one class of two at every threshold on its probability (streaming).

The class of a pixel is the more probable one, a threshold of one half. For a rare class, such as a
defect, another one may fit better: a lower one finds more, a higher one raises fewer false alarms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr.metrics import as_numbers, ratio
from setr.scores.calibration import PIXELS

STEPS = 100
"""Thresholds are multiples of one over this."""


def _edges() -> Tensor:
    """Where bins of probabilities begin: at all thresholds, and in equal steps of log-odds.

    The latter separate the confident pixels, which most are, so that the average precision is that
    of all distinct probabilities to 0.001. Each is there with its complement.
    """
    odds = torch.arange(1, 16 * 1024 + 1, dtype=torch.float64) / 1024
    low = torch.cat([torch.sigmoid(-odds), torch.arange(1, STEPS // 2, dtype=odds.dtype) / STEPS])
    return torch.cat([low, low.new_tensor([0.5]), 1 - low]).sort().values.float()


class Thresholds:
    """Pixels by true class and by the probability of the second of two classes.

    Args:
        device: of the counts.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.edges = _edges().to(device)
        bins = len(self.edges) + 1
        self.counts = torch.zeros(2, bins, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, truth: Tensor, confidence: Tensor) -> None:
        """Count pixels.

        Args:
            prediction: ids (N,), 0 or 1.
            truth: ids (N,), 0 or 1.
            confidence: probabilities (N,) of the predicted class, 0 to 1.
        """
        parts = zip(*(t.split(PIXELS) for t in (prediction, truth, confidence)), strict=True)
        for ids, true, sure in parts:
            second = torch.where(ids == 1, sure, 1 - sure)
            at = torch.bucketize(second.float(), self.edges, right=True)
            at += true.long() * self.counts.shape[1]
            self.counts += torch.bincount(at, minlength=self.counts.numel()).view_as(self.counts)

    def summary(self, classes: tuple[str, ...]) -> dict[str, Any] | None:
        """The curve of the class with fewer labelled pixels; None where it has none.

        Returns:
            `class`, its name; lists `threshold`, `precision`, `recall` and `dice` of its pixels,
            whose probability is at least the threshold; `average_precision`; and `best`, the row
            with the highest Dice.
        """
        counts = self.counts.cpu().numpy()
        pixels = counts.sum(axis=1)
        c = 0 if pixels[0] < pixels[1] else 1
        if not pixels[c]:
            return None
        counts = counts if c else counts[:, ::-1]  # by the probability of class c
        true, false = (counts[i][::-1].cumsum()[::-1].astype(np.float64) for i in (c, 1 - c))
        precision, recall = ratio(true, true + false), true / pixels[c]
        dice = 2 * true / (true + false + pixels[c])
        gained = recall - np.append(recall[1:], 0)
        thresholds = np.arange(1, STEPS) / STEPS
        begins = 1 + np.searchsorted(self.edges.cpu().numpy(), thresholds.astype(np.float32))
        columns = {"precision": precision, "recall": recall, "dice": dice}
        rows = {"threshold": thresholds.tolist()} | {
            name: as_numbers(values[begins]) for name, values in columns.items()
        }
        best = int(np.argmax(dice[begins]))
        return {
            "class": classes[c],
            "average_precision": float(np.nansum(gained * precision)),
            "best": {name: values[best] for name, values in rows.items()},
            **rows,
        }
