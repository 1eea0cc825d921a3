"""The training state: everything an interrupted run needs to continue bit for bit.

Tensors and plain values only, so it loads with `weights_only=True`. A save writes a new file,
flushes it to disk and renames it; the final name always holds a complete state.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from setr.errors import SetrError


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state without executing anything in it.

    Raises:
        SetrError: missing, truncated, or not a training state.
    """
    if not path.is_file():
        raise SetrError(f"{path}: no training state to resume from; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SetrError(f"{path}: broken training state ({reason:.100})") from None
    if not isinstance(state, dict) or "step" not in state:
        raise SetrError(f"{path}: not a training state of this toolkit")
    return dict(state)
