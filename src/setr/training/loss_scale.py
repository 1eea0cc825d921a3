"""Loss scaling for fp16 training.

Wraps torch's `GradScaler`: counts the steps that are skipped because of overflow, and ends a run in
which every step overflows. Does nothing with any other precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from setr.distributed import together
from setr.errors import SetrError

MAX_SKIPPED = 20
"""Skipped steps in a row that end a run; from the initial scale 2^16, the 18th is below 1."""


class LossScaler:
    """Scales the loss, unscales the gradients, and skips steps with non-finite gradients.

    Args:
        device: device of the gradients.
        enabled: whether the precision is fp16.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self.skipped = self.in_a_row = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The scaled loss, for the backward pass."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Unscale the gradients, before they are clipped."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the weights unless a gradient overflowed; returns whether they were updated.

        Raises:
            SetrError: too many overflows in a row.
        """
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        updated = not self.enabled or self.scaler.get_scale() >= before
        self.in_a_row = 0 if updated else self.in_a_row + 1
        self.skipped += not updated
        if self.in_a_row == MAX_SKIPPED:
            raise together(
                SetrError(
                    f"{MAX_SKIPPED} steps in a row had gradients that overflow fp16 "
                    f"({self.skipped} in total); lower --optim.lr, or set --train.precision fp32"
                )
            )
        return updated

    def figures(self) -> dict[str, float]:
        """Values for the log: in fp16, the number of steps skipped so far."""
        return {"skipped": self.skipped} if self.enabled else {}

    def state(self) -> dict[str, Any]:
        """JSON-serialisable values to resume from."""
        return {
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the values of `state`; a run may be resumed in another precision."""
        if self.enabled and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
            self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
