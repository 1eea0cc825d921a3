"""What runs on both sides: loading the peer (mmsegmentation 1.2.2, mmcv-lite), peak memory."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "src"))  # not installed in a peer's
from setr.processes.machine import process_peak


class _NoOps(types.ModuleType):
    """mmcv-lite has no compiled operators; SETR uses none, but the package imports them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def load_mmseg() -> None:
    """Make mmseg importable and its models known."""
    sys.modules["mmcv.ops"] = _NoOps("mmcv.ops")
    sys.modules["timm"] = None  # type: ignore[assignment]  # optional there, and unused here
    from mmseg.utils import register_all_modules

    register_all_modules()


def peak_mb() -> float:
    """Peak main memory of this process alone."""
    return process_peak() / 2**20
