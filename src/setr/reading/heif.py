"""HEIC photos, as iPhones take them, read where pillow-heif (or pi-heif, its decoder) is installed.

The header gives the size before anything is decoded, and libheif, which decodes, refuses pixels
that are many more. It also applies the rotation.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

from setr._extras import import_extra

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
PACKAGES = ("pillow_heif", "pi_heif")
"""Packages that read them; the first one that is installed does."""
INSTALL = 'pip install "setr[heif]"'
_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)


def is_heif(start: bytes) -> bool:
    """Whether a file that Pillow does not know begins like a HEIC file; 12 bytes are enough."""
    return start[4:8] == b"ftyp" and start[8:12] in _BRANDS


@lru_cache(maxsize=1)
def heif_package() -> str | None:
    """The package that reads HEIC files; None if none is installed."""
    return next((name for name in PACKAGES if importlib.util.find_spec(name)), None)


def open_heif(file: Any) -> Any:
    """Open a HEIC file as a Pillow image, without decoding it and without registering a format.

    Args:
        file: a path, or a binary file at its beginning.

    Raises:
        SetrError: no package for it is installed.
        SyntaxError: broken, or not such a file.
    """
    package = heif_package() or PACKAGES[0]
    plugin = import_extra(f"{package}.as_plugin", "heif", "reading HEIC files")
    return plugin.HeifImageFile(file)
