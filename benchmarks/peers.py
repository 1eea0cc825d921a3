"""What it takes to run the peer, mmsegmentation 1.2.2 with mmcv-lite, in its own interpreter."""

from __future__ import annotations

import sys
import types
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
