"""What runs on both sides: loading the peer (mmsegmentation 1.2.2, mmcv-lite), peak memory."""

from __future__ import annotations

import resource
import sys
import types
from pathlib import Path
from typing import Any

import torch


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
    """Peak memory of this process alone; ru_maxrss begins at its parent's size at the fork."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
