"""Packages of the optional extras, imported where they are used."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from setr.errors import SetrError

_HUB = {"HF_HUB_DISABLE_TELEMETRY": "1"}
_ORT = {"ORT_DISABLE_TELEMETRY": "1"}
_UNREPORTED = {
    "datasets": {"HF_UPDATE_DOWNLOAD_COUNTS": "0", **_HUB},
    "huggingface_hub": _HUB,
    "nncf": {"NNCF_CI": "1", **_ORT},  # imports ONNX Runtime, too
    "onnxruntime": _ORT,
    "onnxscript": _ORT,  # as nncf
    "ray": {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_PROMPT_ENABLED": "0"},
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
}
"""Environment of packages that send statistics about their use unless told otherwise."""
_REPORTERS = {"openvino": "openvino_telemetry", "nncf": "openvino_telemetry"}
"""Packages that they send them with, where no variable stops it; without, they send nothing.

OpenVINO starts a process at each import that tells Google Analytics how often it was imported."""


def unreported(package: str) -> None:
    """Switch off what a package reports over the network, unless the environment says otherwise.

    Called before it is imported, which is when it reads the variables.
    """
    for name, value in _UNREPORTED.get(package, {}).items():
        os.environ.setdefault(name, value)
    if package in _REPORTERS:
        sys.modules.setdefault(_REPORTERS[package], None)  # type: ignore[arg-type]  # "not there"


def import_extra(module: str, extra: str, what: str) -> Any:
    """Import a module of an optional package; what it reports over the network stays off.

    Args:
        module: its full name.
        extra: the extra that installs the package.
        what: needs it; begins the message.

    Raises:
        SetrError: it is not installed.
    """
    package = module.partition(".")[0]
    unreported(package)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SetrError(f'{what} needs {package}; pip install "setr[{extra}]"') from None
