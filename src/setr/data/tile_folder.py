"""The folder of tiles that images and masks are cut into.

The tiles of a folder appear together, in its folder `tiles`, when all are complete (extra `geo`).
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr.data.split_draft import known_split, list_text
from setr.data.tile_draft import Tile, divide_tiles, windows
from setr.data.tile_files import box_of, is_blank, is_turned, mask_to_cut, write_image, write_mask
from setr.errors import DataError, SetrError, UsageError
from setr.processes.lock import lock_file
from setr.processes.progress import Progress
from setr.reading.gdal import GdalFile, gdal_driver, import_gdal
from setr.reading.made_folders import TILE_TABLE, TILES, has_tiles
from setr.writing import cannot_write, write_errors, write_rows

SMALLEST = 64
"""Smallest side of tiles in pixels."""
_PART = f".{TILES}.part"
_CACHE_BYTES = 512 << 20
"""GDAL's block cache while cutting: rows of a large image are read once for all tiles in them."""


class Divided(NamedTuple):
    """The lists of the splits, and messages on tiles that are in none."""

    lists: dict[str, str]
    notes: list[str]


class TileFolder:
    """Tiles of a folder, hidden until `finish`.

    Args:
        root: the folder; its subfolder `tiles` is replaced.
        side: most pixels a side.

    Raises:
        SetrError: a folder `tiles` that was not made here, one that cannot be written to, or
            another process that cuts tiles in it.
    """

    def __init__(self, root: Path, side: int) -> None:
        if side < SMALLEST:
            raise UsageError(f"--tile {side}: give {SMALLEST} pixels or more")
        import_gdal(f"--tile {side}")
        self.root, self.side = root, side
        if (root / TILES).exists() and not has_tiles(root):
            raise UsageError(f"{root / TILES}: exists, and was not written by --tile; rename it")
        self._lock = locked(root)
        try:
            self.clear()
        except SetrError:
            self._unlock()
            raise

    def clear(self) -> None:
        """Begin without any tiles.

        Raises:
            SetrError: the folder cannot be written to.
        """
        self.tiles: list[Tile] = []
        self.without_data = 0
        self._remove(self.root / _PART)
        with write_errors(self.root / _PART):
            (self.root / _PART).mkdir()

    def __enter__(self) -> TileFolder:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root / _PART, ignore_errors=True)
        self._unlock()

    def cut(
        self, image: str, name: str, mask: Any, palette: np.ndarray | None
    ) -> Iterator[tuple[Tile, np.ndarray]]:
        """Write the tiles of an image and its mask; those without any data are left out.

        Args:
            image: relative to the folder; a TIFF or PNG file.
            name: of the tiles; their first row and column are appended.
            mask: indexed by rows and columns, with (h, w) ids or (h, w, 3) colours.
            palette: colours (K, 3) of the ids.

        Yields:
            Each tile, and its mask.

        Raises:
            SetrError: unreadable, unwritable, rotated by a tag, or a mask of another size.
        """
        if gdal_driver(self.root / image) is None:
            raise SetrError(
                f"{image}: tiles are cut from TIFF and PNG files only; convert it first"
            )
        if is_turned(self.root / image):
            raise SetrError(
                f"{image}: an orientation tag (EXIF) turns it, and tiles are cut as stored; save "
                "it upright first"
            )
        with GdalFile(self.root / image, cache=_CACHE_BYTES) as source:
            if mask.shape[:2] != source.stored.shape:
                (h, w), (H, W) = mask.shape[:2], source.stored.shape
                raise SetrError(f"{image}: has {W}x{H} pixels, its mask {w}x{h}")
            file, numbers = source.file, range(1, len(source.stored.kinds) + 1)
            on_map = file.crs is not None or not file.transform.is_identity
            for window in windows(source.stored.shape, self.side):
                if not source.has_data(*window, numbers).any() or is_blank(source, window):
                    self.without_data += 1
                    continue
                (top, bottom), (left, right) = window
                end = f"{name}_{top}_{left}.tif"
                tile = Tile(
                    f"{_PART}/images/{end}",
                    f"{_PART}/labels/{end}",
                    image,
                    window,
                    box_of(file, window),
                    file.crs,
                    on_map,
                )
                values = np.asarray(mask[top:bottom, left:right])
                write_image(source, window, self.root / tile.image)
                write_mask(source, window, self.root / tile.mask, values, palette)
                self.tiles.append(tile)
                yield tile, values

    def cut_files(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Write the tiles of images and mask files; returns the masks.

        Args:
            pairs: image and mask, relative to the folder.

        Raises:
            SetrError: as `cut`.
        """
        names = names_for([image for image, _ in pairs])
        with Progress("cut tiles", len(pairs)) as progress:
            for number, (image, mask) in enumerate(pairs, 1):
                for _ in self.cut(image, names[image], *mask_to_cut(self.root / mask)):
                    pass
                progress.update(number, images=1)
        return [tile.mask for tile in self.tiles]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Image and mask of each tile, relative to the folder until `finish`."""
        return [(tile.image, tile.mask) for tile in self.tiles]

    def divide(
        self, val_share: float, known: Mapping[str, str], classes: Mapping[str, Set[int]]
    ) -> Divided:
        """Choose the splits; tiles in none, as those without a pixel of any class, are deleted.

        Args:
            val_share: fraction of the blocks for a validation split that is drawn.
            known: split by image that was cut.
            classes: ids of the classes in the mask of each tile.

        Raises:
            SetrError: no tile has a class, or none is left for training (exit code 3).
        """
        labelled = [tile for tile in self.tiles if classes.get(tile.mask)]
        if not labelled:
            raise DataError(f"{self.root}: no tile has a pixel with a class")
        splits = divide_tiles(labelled, val_share, known, classes)
        if "train" not in splits and any(
            known_split(tile.source, known) in ("train", "") for tile in labelled
        ):
            raise DataError(
                f"{self.root}: all tiles for training show ground of images for validation or "
                "testing; put images of one place into one split"
            )
        kept = {tile for tiles in splits.values() for tile in tiles}
        for tile in set(self.tiles) - kept:
            for file in (tile.image, tile.mask):
                (self.root / file).unlink(missing_ok=True)
        left_out = {
            "tiles without a labelled pixel": len(self.tiles) - len(labelled) + self.without_data,
            "tiles that show ground of another split": len(labelled) - len(kept),
        }
        self.tiles = [tile for tile in labelled if tile in kept]
        _write_table(self.root / _PART / TILE_TABLE, splits)
        lists = {
            split: list_text((_final(tile.image), _final(tile.mask)) for tile in tiles)
            for split, tiles in splits.items()
        }
        return Divided(
            lists, [f"{count} {what} left out" for what, count in left_out.items() if count]
        )

    def finish(self) -> None:
        """Put the tiles in place of earlier ones.

        Raises:
            SetrError: the folder cannot be replaced.
        """
        old = self.root / f".{TILES}.old"
        self._remove(old)
        try:
            if (self.root / TILES).exists():
                (self.root / TILES).rename(old)
            (self.root / _PART).rename(self.root / TILES)
        except OSError as error:
            if old.exists() and not (self.root / TILES).exists():
                old.rename(self.root / TILES)
            raise cannot_write(self.root / TILES, error) from None
        self._remove(old)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _remove(self, folder: Path) -> None:
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            raise SetrError(f"{folder}: cannot be removed: {error.strerror}") from None


def locked(root: Path) -> int | None:
    """A lock against a second process, which would remove what the first has made.

    Returns:
        The open folder, whose lock ends when it is closed; None where folders cannot be locked.

    Raises:
        SetrError: another process has it.
    """
    try:
        fd = os.open(root, os.O_RDONLY)
    except OSError:  # Windows
        return None
    try:
        if lock_file(fd, "flock"):
            return fd
    except BlockingIOError:
        os.close(fd)
        raise SetrError(
            f"{root}: another `setr init-data` is at work here; wait until it ends"
        ) from None
    os.close(fd)
    return None


def names_for(images: Sequence[str]) -> dict[str, str]:
    """A name for the mask or tiles of each image: its path without suffix if that is unique."""
    stems = {image: os.path.splitext(image)[0] for image in images}
    counts = Counter(stems.values())
    return {image: stem if counts[stem] == 1 else image for image, stem in stems.items()}


def _final(name: str) -> str:
    return f"{TILES}{name.removeprefix(_PART)}"


def _write_table(path: Path, splits: Mapping[str, Sequence[Tile]]) -> None:
    """Which tile is what part of which image."""
    rows: list[tuple[object, ...]] = [
        ("tile", "image", "row", "column", "height", "width", "split")
    ]
    for split, tiles in splits.items():
        for tile in tiles:
            (top, bottom), (left, right) = tile.window
            name = tile.image.removeprefix(f"{_PART}/images/")
            rows.append((name, tile.source, top, left, bottom - top, right - left, split))
    write_rows(path, rows)
