"""Expected calibration error (streaming): are 80 % of the pixels predicted with 0.8 correct?

Confidence is the probability of the predicted class (Guo et al., ICML 2017). It is summed as
integer multiples of 2^-20, so sums do not depend on the order or the number of processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr.metrics import as_numbers, ratio

STEPS = 1 << 20
PIXELS = 1 << 22
"""Pixels counted at a time, each of which takes 30 bytes meanwhile."""


class Calibration:
    """Pixels, correct pixels and summed confidence in bins of equal width.

    Args:
        bins: number of bins between 0 and 1.
        device: of the counts.
    """

    def __init__(self, bins: int = 15, device: torch.device | str = "cpu") -> None:
        self.bins = bins
        # rows: pixels, correct pixels, confidence in steps
        self.counts = torch.zeros(3, bins, dtype=torch.int64, device=device)

    def update(self, confidence: Tensor, correct: Tensor) -> None:
        """Count pixels.

        Args:
            confidence: probabilities (N,) of the predicted class, 0 to 1.
            correct: (N,) bool.
        """
        for part, right in zip(confidence.split(PIXELS), correct.split(PIXELS), strict=True):
            self._count(part, right)

    def _count(self, confidence: Tensor, correct: Tensor) -> None:
        steps = (confidence.double() * STEPS).round_()
        index = (confidence * self.bins).long().clamp_(0, self.bins - 1)
        ones = torch.bincount(index, minlength=self.bins)
        hits = torch.bincount(index[correct], minlength=self.bins)
        # sums of integers below 2^53 are exact in float64
        sums = torch.bincount(index, weights=steps, minlength=self.bins).long()
        self.counts += torch.stack([ones, hits, sums])

    def summary(self) -> dict[str, Any]:
        """`ece` (None without pixels) and per bin `pixels`, `accuracy`, `confidence`."""
        pixels, hits, steps = self.counts.cpu().numpy().astype(np.float64)
        accuracy, confidence = ratio(hits, pixels), ratio(steps, pixels) / STEPS
        total = pixels.sum()
        return {
            "ece": float(np.nansum(pixels * np.abs(accuracy - confidence)) / total)
            if total
            else None,
            "pixels": [int(n) for n in pixels],
            "accuracy": as_numbers(accuracy),
            "confidence": as_numbers(confidence),
        }
