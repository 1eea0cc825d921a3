"""Drawing mask files for a folder of images with outlines.

Pixels without data in a GeoTIFF are ignored in its mask. Masks replace earlier ones when all are
drawn: an error would else leave masks whose ids do not fit the data.yaml that is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from setr.bands import Bands, check_pixels
from setr.data.flat_pairs import DRAWN
from setr.data.pairing import data_error
from setr.data.tile_folder import TileFolder, names_for
from setr.errors import USAGE, SetrError
from setr.images import check_whole, encode_png
from setr.labels import IGNORE, Labels
from setr.outlines.drawing import draw
from setr.outlines.index import BACKGROUND, IGNORED, AnnotatedFolder, AnnotatedImage
from setr.outlines.window_masks import WindowMask
from setr.processes.progress import Progress
from setr.reading.files import write_bytes
from setr.reading.gdal import GdalFile, without_data
from setr.reading.pillow import MAX_PIXELS

SHOWN = 10
NOT_COUNTED = (IGNORED, "ignore")
"""Class names for ignored areas: LabelMe's, and the one of data.yaml."""


@dataclass
class DrawnMasks:
    """The masks that were written.

    Attributes:
        pairs: image and mask, relative to the folder.
        classes: in the order of their ids in the masks; 255 is ignored.
        pixels: number per id in all masks.
        splits: by image, where the annotation file gives one.
        by_mask: ids of the classes in each mask.
    """

    pairs: list[tuple[str, str]] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    pixels: Counter[int] = field(default_factory=Counter)
    splits: dict[str, str] = field(default_factory=dict)
    by_mask: dict[str, frozenset[int]] = field(default_factory=dict)

    def add(self, image: str, name: str, mask: np.ndarray) -> None:
        """Count the ids of a mask that was written."""
        self.pairs.append((image, name))
        counts = np.bincount(mask.ravel(), minlength=256)
        pixels = {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
        self.pixels.update(pixels)
        self.by_mask[name] = frozenset(pixels) - {IGNORE}


def draw_masks(
    root: Path,
    annotated: AnnotatedFolder,
    *,
    rest: str = "background",
    tiles: TileFolder | None = None,
) -> DrawnMasks:
    """Write a palette PNG per image to the folder `masks_drawn`, or tiles of images and masks.

    Args:
        root: the folder.
        annotated: what `find_outlines` found there.
        rest: class of pixels outside all outlines, added to the classes if it occurs; or `ignore`.
        tiles: if given, images and their masks are cut into it.

    Raises:
        SetrError: a single class with `rest`; too many classes; or images or outlines that cannot
            be read, of which the number and the first ten are given (exit code 3).
    """
    own = tuple(name for name in annotated.classes if name not in (*NOT_COUNTED, BACKGROUND))
    if not own or not any(entry.shapes for entry in annotated.images):
        _refuse(
            root,
            annotated,
            annotated.problems
            or [f"{left_out_text(annotated.left_out) or 'no shapes'}; draw polygons or masks"],
        )
    classes = _with_rest(own, rest)
    if len(classes) > IGNORE:
        raise data_error(
            f"{root}: outlines ({annotated.kind}) of {len(classes)} classes, including --rest; at "
            f"most {IGNORE} fit into masks: merge some, or remove them from the file"
        )
    ids = {name: i for i, name in enumerate(classes)}
    ids |= {**dict.fromkeys(NOT_COUNTED, IGNORE), BACKGROUND: ids.get(rest, IGNORE)}
    palette = Labels(classes).palette
    drawn, problems = DrawnMasks(), list(annotated.problems)
    names = names_for([entry.image for entry in annotated.images])
    with _hidden(root) as hidden, Progress("draw masks", len(annotated.images)) as progress:
        for number, entry in enumerate(annotated.images, 1):
            try:
                name, rest_id = names[entry.image], ids[BACKGROUND]
                if tiles is None:
                    mask = _mask(root, entry, ids, rest_id, annotated.largest_first)
                    _save(hidden / f"{name}.png", mask, palette)
                    drawn.add(entry.image, f"{DRAWN}/{name}.png", mask)
                else:
                    whole = _mask_to_cut(root, entry, ids, rest_id, annotated.largest_first)
                    for tile, part in tiles.cut(entry.image, name, whole, palette):
                        drawn.add(tile.image, tile.mask, part)
            except SetrError as error:
                problems.append(str(error))
                continue
            if entry.split:
                drawn.splits[entry.image] = entry.split
            progress.update(number, images=1)
        if problems:
            _refuse(root, annotated, problems)
        if tiles is None:
            _put_in_place(hidden, root / DRAWN, [names[e.image] for e in annotated.images])
    drawn.classes = classes if drawn.pixels[ids[BACKGROUND]] else own
    return drawn


def _refuse(root: Path, annotated: AnnotatedFolder, problems: list[str]) -> NoReturn:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise data_error(
        f"{root}: {count} with outlines ({annotated.kind}): {'; '.join(problems[:SHOWN])}{more}"
    )


def _with_rest(names: tuple[str, ...], rest: str) -> tuple[str, ...]:
    """All classes in the order of their ids: those of the outlines, then `rest` if it is new."""
    if rest not in NOT_COUNTED:
        names = tuple(dict.fromkeys((*names, rest)))
    if len(names) < 2:
        raise SetrError(
            f"--rest {rest}: the outlines have a single class, '{names[0]}'; give another class "
            "for the pixels outside them",
            code=USAGE,
        )
    return names


def left_out_text(left_out: dict[str, int]) -> str:
    """Message on annotations that were left out; empty if there are none."""
    parts = [f"{count} {what}" for what, count in left_out.items()]
    return f"left out, because they have no area: {', '.join(parts)}" if parts else ""


@contextlib.contextmanager
def _hidden(root: Path) -> Iterator[Path]:
    """A hidden folder, removed in the end."""
    part = root / f".{DRAWN}.part"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode_png(mask, palette=palette))


def _put_in_place(part: Path, folder: Path, names: list[str]) -> None:
    """Move masks to their folder; other files there are kept."""
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / f"{name}.png", path)


def _size(path: Path) -> tuple[int, int]:
    """(H, W) of an RGB image, or of a TIFF file with any bands and values."""
    try:
        return check_whole(path)[0]
    except SetrError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
    return check_pixels(path, Bands((1,), ((0.0, 1.0),)))[0]


def _mask(
    root: Path, entry: AnnotatedImage, ids: dict[str, int], rest: int, largest_first: bool
) -> np.ndarray:
    size = _size(root / entry.image)
    if entry.size not in (None, size):
        turned, other = "draw on it as shown, EXIF rotation applied", "use the file drawn on"
        raise SetrError(
            f"{entry.source}: gives {entry.image} {entry.size[1]}x{entry.size[0]} pixels, the file "
            f"has {size[1]}x{size[0]}; {turned if entry.size == size[::-1] else other}"
        )
    try:
        mask, covered = draw(entry.shapes, size, ids, largest_first=largest_first)
    except SetrError as error:
        raise SetrError(f"{entry.source}: {error}") from None
    mask[~covered] = rest
    empty = without_data(root / entry.image, ())  # any band may be read
    if empty is not None:
        mask[empty[:]] = IGNORE
    return mask


def _mask_to_cut(
    root: Path, entry: AnnotatedImage, ids: dict[str, int], rest: int, largest_first: bool
) -> np.ndarray | WindowMask:
    """The mask as a whole, or of a large image by windows."""
    with GdalFile(root / entry.image) as file:
        size = file.stored.shape
    if size[0] * size[1] <= MAX_PIXELS:
        return _mask(root, entry, ids, rest, largest_first)
    empty = without_data(root / entry.image, ())
    try:
        return WindowMask(entry.shapes, size, ids, rest, largest_first=largest_first, empty=empty)
    except SetrError as error:
        raise SetrError(f"{entry.source}: {error}") from None
