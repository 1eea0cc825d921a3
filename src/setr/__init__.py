"""SETR: semantic segmentation with plain vision transformers.

Public names load on first use, so that `import setr` and `setr --help` need neither torch nor timm.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Bands": "bands",
    "Config": "config",
    "Labels": "labels",
    "ModelInfo": "model_info",
    "Predictor": "predictor",
    "Protocol": "protocols",
    "Result": "result",
    "SETR": "model",
    "SetrError": "errors",
    "Tracker": "trackers",
    "create_model": "model",
    "evaluate": "evaluation",
    "from_pretrained": "hub",
    "list_models": "catalog",
    "list_recipes": "recipes",
    "load": "predictor",
    "load_weights": "weights",
    "open_dataset": "datasets",
    "push_to_hub": "hub",
    "recipe": "recipes",
    "save_pretrained": "hub",
    "segmentation_loss": "losses",
    "train": "engine",
    "wrap_dataset": "wrapped",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'setr' has no attribute '{name}'")
    return getattr(importlib.import_module(f"setr.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
