"""fp16 training: gradients scaled into the range of fp16, and steps that overflow left out.

torch's `GradScaler` finds the scale. This counts the steps it leaves out, and ends a run in which
nothing but overflow happens. With any other precision all of it does nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from setr.distributed import together
from setr.errors import SetrError

MAX_SKIPPED = 20
"""Steps in a row; from the first scale, 2^16, the 18th already multiplies by less than one."""


class LossScaler:
    """Scales a loss, its gradients back, and steps only where these are finite.

    Args:
        device: of the gradients.
        enabled: whether the precision is fp16.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self.skipped = self.in_a_row = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their own size back, before they are clipped."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Move the weights unless a gradient overflowed; says whether they moved.

        Raises:
            SetrError: too many steps in a row overflowed.
        """
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        moved = not self.enabled or self.scaler.get_scale() >= before
        self.in_a_row = 0 if moved else self.in_a_row + 1
        self.skipped += not moved
        if self.in_a_row == MAX_SKIPPED:
            raise together(
                SetrError(
                    f"{MAX_SKIPPED} steps in a row had gradients that fp16 cannot hold "
                    f"({self.skipped} in all); lower --optim.lr, or set --train.precision fp32"
                )
            )
        return moved

    def figures(self) -> dict[str, float]:
        """What the log says: nothing, or the steps left out so far."""
        return {"skipped": self.skipped} if self.enabled else {}

    def state(self) -> dict[str, Any]:
        """Plain values to resume from."""
        return {
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; a run may continue in another precision."""
        if self.enabled and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
            self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
