"""Speed and memory for the log: peak memory and MFU.

MFU is model FLOPs utilisation: the FLOPs of forward and backward pass, without recomputation, over
those that a matrix product of this machine reaches in the same time (Chowdhery et al. 2022,
appendix B, with a measured peak instead of the data sheet's).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from setr.config import Config
from setr.distributed import world
from setr.estimate import flops_per_image
from setr.processes.machine import matmul_rate, peak_bytes


class Telemetry:
    """Measures the machine once, and then completes the rates of a log line.

    Args:
        num_classes: K.
        dtype: of autocast; None for fp32.
    """

    def __init__(
        self, config: Config, num_classes: int, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        self.device = device
        self.flops = flops_per_image(config, num_classes)
        self.rate = matmul_rate(device, dtype) * world()

    def figures(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Values for a log line: the rates, `peak_memory_gb` of this process, and `mfu_percent`."""
        reached = self.flops * rates["images_per_second"]
        return {
            **rates,
            "peak_memory_gb": round(peak_bytes(self.device) / 1e9, 3),
            "mfu_percent": round(100 * reached / self.rate, 2),
        }
