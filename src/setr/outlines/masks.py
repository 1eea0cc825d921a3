"""Draws the masks of a folder whose images have outlines only.

What a GeoTIFF calls empty is ignored in its mask.
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
from setr.outlines.index import BACKGROUND, DRAWN, IGNORED, Annotated, Outlined
from setr.processes.progress import Progress
from setr.reading.files import write_bytes
from setr.reading.gdal import without_data

SHOWN = 10
NOT_COUNTED = (IGNORED, "ignore")
"""Names of outlines that make no class; the second is what data.yaml calls it."""


@dataclass
class Drawn:
    """The masks that were written.

    Attributes:
        pairs: image and mask, relative to the folder.
        classes: in the order of their ids in the masks; 255 is ignored there.
        pixels: of each id in all masks.
        splits: of the images whose file of outlines tells one.
    """

    pairs: list[tuple[str, str]] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    pixels: Counter[int] = field(default_factory=Counter)
    splits: dict[str, str] = field(default_factory=dict)


def draw_masks(root: Path, outlined: Outlined, *, rest: str = "background") -> Drawn:
    """Write a palette PNG per image to the folder `masks_drawn`.

    Args:
        root: the folder.
        outlined: what `find_outlines` found there.
        rest: class of what no outline covers, added to the classes where it occurs; or `ignore`.

    Raises:
        SetrError: `rest` would leave a single class; too many classes; or images or outlines that
            cannot be read, all of them counted and the first ten named (exit code 3).
    """
    own = tuple(name for name in outlined.classes if name not in (*NOT_COUNTED, BACKGROUND))
    if not own or not any(entry.shapes for entry in outlined.images):
        _refuse(root, outlined, outlined.problems or [told(outlined.left_out) or "no shapes"])
    classes = _with_rest(own, rest)
    if len(classes) > IGNORE:
        raise data_error(
            f"{root}: outlines ({outlined.kind}) of {len(classes)} classes, with what --rest adds; "
            f"masks hold at most {IGNORE}: join some, or leave them out of the file"
        )
    ids = {name: i for i, name in enumerate(classes)}
    ids |= {**dict.fromkeys(NOT_COUNTED, IGNORE), BACKGROUND: ids.get(rest, IGNORE)}
    palette = Labels(classes).palette
    drawn, problems = Drawn(), list(outlined.problems)
    stems = Counter(os.path.splitext(entry.image)[0] for entry in outlined.images)
    with Progress("draw masks", len(outlined.images)) as progress:
        for number, entry in enumerate(outlined.images, 1):
            stem = os.path.splitext(entry.image)[0]
            name = f"{DRAWN}/{stem if stems[stem] == 1 else entry.image}.png"
            try:
                mask = _mask(root, entry, ids, ids[BACKGROUND], outlined.largest_first)
            except SetrError as error:
                problems.append(str(error))
                continue
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(root / name, encode_png(mask, palette=palette))
            drawn.pairs.append((entry.image, name))
            counts = np.bincount(mask.ravel(), minlength=256)
            drawn.pixels.update({int(i): int(counts[i]) for i in np.flatnonzero(counts)})
            if entry.split:
                drawn.splits[entry.image] = entry.split
            progress.update(number, images=1)
    if problems:
        _refuse(root, outlined, problems)
    drawn.classes = classes if drawn.pixels[ids[BACKGROUND]] else own
    return drawn


def _refuse(root: Path, outlined: Outlined, problems: list[str]) -> NoReturn:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise data_error(
        f"{root}: {count} with outlines ({outlined.kind}): {'; '.join(problems[:SHOWN])}{more}"
    )


def _with_rest(names: tuple[str, ...], rest: str) -> tuple[str, ...]:
    """All classes in the order of their ids: those of the outlines, and the rest's if it is new."""
    if rest not in NOT_COUNTED:
        names = tuple(dict.fromkeys((*names, rest)))
    if len(names) < 2:
        raise SetrError(
            f"--rest {rest}: the outlines have the single class '{names[0]}'; name another class "
            "for what they leave out",
            code=USAGE,
        )
    return names


def told(left_out: dict[str, int]) -> str:
    """What was left out; empty for nothing."""
    parts = [f"{count} {what}" for what, count in left_out.items()]
    return f"left out, because they have no area: {', '.join(parts)}" if parts else ""


def _size(path: Path) -> tuple[int, int]:
    """(H, W) of an image that is read as RGB, or of a TIFF file of any bands and values."""
    try:
        return check_whole(path)[0]
    except SetrError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
    return check_pixels(path, Bands((1,), ((0.0, 1.0),)))[0]


def _mask(
    root: Path, entry: Annotated, ids: dict[str, int], rest: int, largest_first: bool
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
