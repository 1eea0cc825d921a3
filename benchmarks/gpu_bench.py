"""What the GPU's checks share: where to compute, how to time, when to fail."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "src"))
from setr.layers.precision import autocast_dtype

Figures = dict[str, Any]
HALF = 0.02
"""Relative error of bf16 gradients that is still rounding."""


@dataclasses.dataclass
class Bench:
    """Where to compute, and how large.

    Attributes:
        device: under test.
        tiny: small sizes and few repeats.
        folder: for data and runs.
        decoders: whose steps are timed.
    """

    device: torch.device
    tiny: bool
    folder: Path
    decoders: Sequence[str] = ("naive", "pup", "mla")

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def halves(self) -> list[str]:
        """Precisions below fp32 that the device has."""
        if self.cuda:
            return ["bf16", "fp16"]
        return ["bf16"] if autocast_dtype("auto", self.device) else []

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Median of several runs after two to warm up."""
        times = []
        for number in range(4 if self.tiny else 22):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if number >= 2:
                times.append(1e3 * (time.perf_counter() - began))
        return round(statistics.median(times), 3)


def require(condition: bool, text: str) -> None:
    """Fail a check."""
    if not condition:
        raise AssertionError(text)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, by the norm."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
