"""Folders that `setr init-data` writes into a data set: drawn masks, and tiles."""

from __future__ import annotations

from pathlib import Path

DRAWN = "masks_drawn"
TILES = "tiles"
TILE_TABLE = "tiles.csv"
"""In `TILES`; by it the folder is known from one of the user's."""


def has_tiles(root: Path) -> bool:
    """Whether the folder has tiles that were cut here."""
    return (root / TILES / TILE_TABLE).is_file()


def made_folders(root: Path) -> tuple[str, ...]:
    """Those that may be in a folder; none is a place of images of the user's own."""
    return (DRAWN, TILES) if has_tiles(root) else (DRAWN,)
