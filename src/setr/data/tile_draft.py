"""Where images are cut into tiles, and which tiles are for training and which for validation.

Neighbouring tiles show much the same ground, so a random choice of tiles would flatter the
validation. Whole blocks of neighbours are chosen instead. Images may overlap on the map, such as
one scene at two dates; no ground is then in two splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from setr.data.split_draft import drawn_split, known_split

BLOCKS = 25
"""Approximate number of blocks; with fewer tiles, each tile is a block."""
TOUCHING = 0.01
"""Tiles whose overlap is narrower than this share of their size only touch."""
Window = tuple[tuple[int, int], tuple[int, int]]
"""First row and the one after the last, and the same of the columns."""


class Tile(NamedTuple):
    """A tile of an image.

    Attributes:
        image: file of its pixels.
        mask: file of its ids or colours.
        source: image it was cut from.
        window: its rows and columns there.
        box: smallest and largest coordinates (left, low, right, high) on the map, or in pixels.
        crs: reference system of the box.
        on_map: whether the image is georeferenced.
    """

    image: str
    mask: str
    source: str
    window: Window
    box: tuple[float, float, float, float]
    crs: Any
    on_map: bool


def windows(shape: tuple[int, int], side: int) -> list[Window]:
    """A grid over an image (H, W), of nearly equal tiles of at most `side` pixels a side."""
    rows, columns = (
        [(k * length // count, (k + 1) * length // count) for k in range(count)]
        for length, count in ((length, -(-length // side)) for length in shape)
    )
    return [(row, column) for row in rows for column in columns]


def divide_tiles(
    tiles: Sequence[Tile],
    val_share: float,
    known: Mapping[str, str],
    classes: Mapping[str, Set[int]],
) -> dict[str, list[Tile]]:
    """The tiles of each split.

    Tiles of images with a known split stay in it. If no validation split is known, blocks are drawn
    for it from the others. Tiles of training that show ground of the validation or test split, and
    tiles of validation that show ground of the test split, are in no split.

    Args:
        val_share: fraction of the blocks for a validation split that is drawn.
        known: split by image that was cut.
        classes: ids of the classes in each mask.
    """
    splits = np.array([known_split(tile.source, known) or "train" for tile in tiles], object)
    ground, boxes = _on_common_ground(tiles)
    free = np.flatnonzero(splits == "train")
    if "val" not in splits and len(free):
        blocks = _blocks(ground[free], boxes[free])
        found: dict[str, set[int]] = {}
        for name, index in zip(blocks, free.tolist(), strict=True):
            found.setdefault(name, set()).update(classes[tiles[index].mask])
        divided = drawn_split([(name, name) for name in found], val_share, found)
        chosen = {name for name, _ in divided["val"]} if len(found) > 1 else set()
        splits[free[[name in chosen for name in blocks]]] = "val"
    sources = np.array([tile.source for tile in tiles], object)
    for kept, others in (("test", ("train", "val")), ("val", ("train",))):
        theirs = np.flatnonzero(splits == kept)
        for source in dict.fromkeys(sources):
            own = np.flatnonzero((sources == source) & np.isin(splits, others))
            rest = theirs[(sources[theirs] != source) & np.isin(ground[theirs], ground[own])]
            splits[own[_overlap(boxes[own], boxes[rest])]] = ""
    return {
        split: [tile for tile, own in zip(tiles, splits, strict=True) if own == split]
        for split in ("train", "val", "test")
        if split in splits
    }


def _on_common_ground(tiles: Sequence[Tile]) -> tuple[np.ndarray, np.ndarray]:
    """The plane on which each tile lies, and its box there (N, 4).

    All georeferenced images lie in the reference system of the first one; each other image has its
    own plane.
    """
    first = next((tile.crs for tile in tiles if tile.on_map and tile.crs is not None), None)
    ground, boxes = [], []
    for tile in tiles:
        box = tile.box
        if tile.on_map and tile.crs is not None and tile.crs != first:
            from rasterio.warp import transform_bounds

            try:
                box = transform_bounds(tile.crs, first, *box)
            except Exception:  # too far away to be expressed there
                box = (np.inf,) * 4
        placed = tile.on_map and bool(np.isfinite(box).all())
        ground.append("" if placed else tile.source)
        boxes.append(box if placed or not tile.on_map else tile.box)
    return np.array(ground, object), np.array(boxes, float).reshape(-1, 4)


def _blocks(ground: np.ndarray, boxes: np.ndarray) -> list[str]:
    """The name of each tile's block: square cells of several tiles, the same for all images.

    Names are hashes, because the draw sorts names by checksums, which are similar for neighbours.
    """
    side = max(1, int((len(boxes) / BLOCKS) ** 0.5))
    names = [""] * len(boxes)
    for plane in dict.fromkeys(ground):
        here = np.flatnonzero(ground == plane)
        sizes = np.median(boxes[here, 2:] - boxes[here, :2], axis=0) * side
        centres = (boxes[here, :2] + boxes[here, 2:]) / 2 - boxes[here, :2].min(axis=0)
        for index, (x, y) in zip(here, np.floor(centres / sizes).astype(int), strict=True):
            place = f"{plane} {x} {y}".encode("utf-8", "surrogateescape")
            names[index] = hashlib.sha256(place).hexdigest()
    return names


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the boxes (N, 4) overlap any of the others (M, 4) by more than their edges."""
    found = np.zeros(len(boxes), bool)
    for other in others:
        common = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
        least = TOUCHING * np.minimum(boxes[:, 2:] - boxes[:, :2], other[2:] - other[:2])
        found |= (common > least).all(axis=1)
    return found
