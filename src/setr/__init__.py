"""SETR: semantic segmentation with plain vision transformers.

Public names are imported on first use, so that `import setr` and `setr --help` do not import torch
or timm. The imports under `TYPE_CHECKING` are for type checkers and editors.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

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
    "load": "loading",
    "load_weights": "weights",
    "open_dataset": "datasets",
    "push_to_hub": "hub",
    "recipe": "recipes",
    "save_pretrained": "hub",
    "segmentation_loss": "losses",
    "sweep": "sweeping",
    "train": "engine",
    "wrap_dataset": "wrapped",
}
__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from setr.bands import Bands as Bands
    from setr.catalog import list_models as list_models
    from setr.config import Config as Config
    from setr.datasets import open_dataset as open_dataset
    from setr.engine import train as train
    from setr.errors import SetrError as SetrError
    from setr.evaluation import evaluate as evaluate
    from setr.hub import from_pretrained as from_pretrained
    from setr.hub import push_to_hub as push_to_hub
    from setr.hub import save_pretrained as save_pretrained
    from setr.labels import Labels as Labels
    from setr.loading import load as load
    from setr.losses import segmentation_loss as segmentation_loss
    from setr.model import SETR as SETR
    from setr.model import create_model as create_model
    from setr.model_info import ModelInfo as ModelInfo
    from setr.predictor import Predictor as Predictor
    from setr.protocols import Protocol as Protocol
    from setr.recipes import list_recipes as list_recipes
    from setr.recipes import recipe as recipe
    from setr.result import Result as Result
    from setr.sweeping import sweep as sweep
    from setr.trackers import Tracker as Tracker
    from setr.weights import load_weights as load_weights
    from setr.wrapped import wrap_dataset as wrap_dataset
else:

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            hints = importlib.import_module("setr.arguments.elsewhere_python")
            hint = hints.hint_at("setr", name)
            imported = sys._getframe(1).f_code.co_name == "_handle_fromlist"  # from setr import …
            if hint and imported and not importlib.util.find_spec(f"setr.{name}"):
                raise ImportError(f"cannot import name '{name}' from 'setr'{hint}")
            raise AttributeError(f"module 'setr' has no attribute '{name}'{hint}")
        return getattr(importlib.import_module(f"setr.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
