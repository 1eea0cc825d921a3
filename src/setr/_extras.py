"""Packages of the optional extras, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from setr.errors import SetrError


def import_extra(module: str, extra: str, what: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its full name.
        extra: the extra that installs the package.
        what: needs it; begins the message.

    Raises:
        SetrError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise SetrError(f'{what} needs {package}; pip install "setr[{extra}]"') from None
