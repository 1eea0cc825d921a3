"""Packages of the optional extras, imported where they are used."""

from __future__ import annotations

import importlib
import os
from typing import Any

from setr.errors import SetrError

_UNREPORTED = {
    "nncf": {"NNCF_CI": "1"},
    "ray": {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_PROMPT_ENABLED": "0"},
}
"""Environment of packages that send statistics about their use unless told otherwise."""


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
    for name, value in _UNREPORTED.get(package, {}).items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SetrError(f'{what} needs {package}; pip install "setr[{extra}]"') from None
