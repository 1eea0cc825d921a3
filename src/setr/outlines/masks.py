"""Drawing mask files for a folder of images with outlines.

Pixels without data in a GeoTIFF are ignored in its mask.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from setr.bands import Bands, check_pixels
from setr.data.pairing import data_error
from setr.errors import USAGE, SetrError
from setr.images import check_whole, encode_png
from setr.labels import IGNORE, Labels
from setr.outlines.drawing import draw
from setr.outlines.index import BACKGROUND, DRAWN, IGNORED, AnnotatedFolder, AnnotatedImage
from setr.processes.progress import Progress
from setr.reading.files import write_bytes
from setr.reading.gdal import without_data

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


def draw_masks(root: Path, annotated: AnnotatedFolder, *, rest: str = "background") -> DrawnMasks:
    """Write a palette PNG per image to the folder `masks_drawn`.

    Args:
        root: the folder.
        outlined: what `find_outlines` found there.
        rest: class of pixels outside all outlines, added to the classes if it occurs; or `ignore`.

    Raises:
        SetrError: a single class with `rest`; too many classes; or images or outlines that cannot
            be read, of which the number and the first ten are given (exit code 3).
    """
    own = tuple(name for name in annotated.classes if name not in (*NOT_COUNTED, BACKGROUND))
    if not own or not any(entry.shapes for entry in annotated.images):
        _refuse(
            root,
            annotated,
            annotated.problems or [left_out_text(annotated.left_out) or "no shapes"],
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
    stems = Counter(os.path.splitext(entry.image)[0] for entry in annotated.images)
    with Progress("draw masks", len(annotated.images)) as progress:
        for number, entry in enumerate(annotated.images, 1):
            stem = os.path.splitext(entry.image)[0]
            name = f"{DRAWN}/{stem if stems[stem] == 1 else entry.image}.png"
            try:
                mask = _mask(root, entry, ids, ids[BACKGROUND], annotated.largest_first)
            except SetrError as error:
                problems.append(str(error))
                continue
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(root / name, encode_png(mask, palette=palette))
            drawn.pairs.append((entry.image, name))
            counts = np.bincount(mask.ravel(), minlength=256)
            pixels = {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
            drawn.pixels.update(pixels)
            drawn.by_mask[name] = frozenset(pixels) - {IGNORE}
            if entry.split:
                drawn.splits[entry.image] = entry.split
            progress.update(number, images=1)
    if problems:
        _refuse(root, annotated, problems)
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
