"""Precision and recall of one class of two at every threshold on its probability (streaming).

The class of a pixel is the more probable one, a threshold of one half. For a rare class, such as a
defect, another one may fit better: a lower one finds more, a higher one raises fewer false alarms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr.metrics import ratio
from setr.scores.calibration import PIXELS

STEPS = 100
"""Thresholds are multiples of one over this."""


class Thresholds:
    """Pixels by true class and by the probability of the second of two classes.

    Args:
        device: of the counts.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(2, STEPS, dtype=torch.int64, device=device)

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
            step = (second * STEPS).long().clamp_(0, STEPS - 1)
            self.counts += torch.bincount(true.long() * STEPS + step, minlength=2 * STEPS).view(
                2, STEPS
            )

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
        best = 1 + int(np.argmax(dice[1:]))
        columns = {
            "threshold": np.arange(STEPS) / STEPS,
            "precision": precision,
            "recall": recall,
            "dice": dice,
        }
        rows = {
            name: [None if np.isnan(v) else float(v) for v in values]
            for name, values in columns.items()
        }
        return {
            "class": classes[c],
            "average_precision": float(np.nansum(gained * precision)),
            "best": {name: values[best] for name, values in rows.items()},
            **{name: values[1:] for name, values in rows.items()},
        }
