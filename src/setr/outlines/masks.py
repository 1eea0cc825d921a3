"""Drawing mask files for a folder of images with outlines.

Pixels without data in a GeoTIFF are ignored in its mask. Masks replace earlier ones when all are
drawn: an error would else leave masks whose ids do not fit the data.yaml that is there.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from setr.data.tile_folder import TileFolder, names_for
from setr.errors import DataError, SetrError, UsageError, joined_problems, nearest
from setr.labels import IGNORE, Labels
from setr.outlines.drawing import Drawn, Rules
from setr.outlines.index import BACKGROUND, IGNORED, AnnotatedFolder, AnnotatedImage
from setr.outlines.mask_store import Counts, MaskStore, counts_of
from setr.outlines.rendering import mask_to_cut, whole_mask
from setr.processes.progress import Progress
from setr.processes.quota import cpus
from setr.reading.made_folders import DRAWN

SHOWN = 10
MOST_THREADS = 8
"""Each draws an image, which may have 150 million pixels."""
OVERLAPS_SHOWN = 5
"""Pairs of classes that are named in a message."""
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
        overlaps: pixels at which a class was drawn over another, by both names.
        overlapped: number of masks with such pixels.
    """

    pairs: list[tuple[str, str]] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    pixels: Counter[int] = field(default_factory=Counter)
    splits: dict[str, str] = field(default_factory=dict)
    by_mask: dict[str, frozenset[int]] = field(default_factory=dict)
    overlaps: Counter[tuple[str, str]] = field(default_factory=Counter)
    overlapped: int = 0

    def add(self, image: str, name: str, counts: Counts) -> None:
        """Count the ids of a mask that was written."""
        self.pairs.append((image, name))
        self.pixels.update(counts.pixels)
        self.by_mask[name] = frozenset(counts.pixels) - {IGNORE}

    def add_overlaps(self, overlaps: Counter[tuple[str, str]]) -> None:
        """Count the overlaps of an image."""
        self.overlaps.update(overlaps)
        self.overlapped += bool(overlaps)


def draw_masks(
    root: Path,
    annotated: AnnotatedFolder,
    *,
    rest: str = "background",
    order: tuple[str, ...] = (),
    tiles: TileFolder | None = None,
) -> DrawnMasks:
    """Write a palette PNG per image to the folder `masks_drawn`, or tiles of images and masks.

    Args:
        annotated: what `find_outlines` found there.
        rest: class of pixels outside all outlines, added to the classes if it occurs; or `ignore`.
        order: names of classes; those named later are drawn over those named earlier, and all of
            them over others.
        tiles: if given, images and their masks are cut into it.

    Raises:
        SetrError: a single class with `rest`; an unknown class in `order`; too many classes; or
            images or outlines that cannot be read, of which the number and the first ten are given
            (exit code 3).
    """
    own = tuple(name for name in annotated.classes if name not in (*NOT_COUNTED, BACKGROUND))
    if not own or not any(entry.shapes for entry in annotated.images):
        why = f"{left_out_text(annotated.left_out) or 'no shapes'}; draw polygons or masks"
        _refuse(root, annotated, annotated.problems or [why])
    classes = _with_rest(own, rest)
    if len(classes) > IGNORE:
        raise DataError(
            f"{root}: outlines ({annotated.kind}) of {len(classes)} classes, including --rest; at "
            f"most {IGNORE} fit into masks: merge some, or remove them from the file"
        )
    _require_known(order, (*own, *NOT_COUNTED, BACKGROUND))
    ids = {name: i for i, name in enumerate(classes)}
    ids |= {**dict.fromkeys(NOT_COUNTED, IGNORE), BACKGROUND: ids.get(rest, IGNORE)}
    rules = Rules(ids, ids[BACKGROUND], annotated.largest_first, order)
    try:
        drawn, palette = DrawnMasks(), Labels(classes).palette
    except SetrError as error:
        raise DataError(f"{root}: outlines ({annotated.kind}): {error}") from None
    if tiles is None:
        _draw_files(root, annotated, rules, palette, drawn)
    else:
        _draw_tiles(root, annotated, rules, palette, drawn, tiles)
    drawn.splits = {entry.image: entry.split for entry in annotated.images if entry.split}
    drawn.classes = classes if drawn.pixels[ids[BACKGROUND]] else own
    return drawn


def _draw_files(
    root: Path, annotated: AnnotatedFolder, rules: Rules, palette: np.ndarray, drawn: DrawnMasks
) -> None:
    """Write the masks, in parallel, and put them in place together."""
    names = names_for([entry.image for entry in annotated.images])
    problems = list(annotated.problems)
    with (
        MaskStore(root, rules) as store,
        Progress("draw masks", len(annotated.images)) as progress,
        _cancelled(ThreadPoolExecutor(min(cpus(), MOST_THREADS), "draw")) as pool,
    ):

        def drawn_file(entry: AnnotatedImage) -> tuple[str, Counts | str]:
            """Key and counts of a mask, or a problem; a full disk is none of the outlines."""
            name = names[entry.image]
            try:
                key = store.key(name, entry)
                if counts := store.known(name, key):
                    return key, counts
                mask = whole_mask(root, entry, rules)
            except SetrError as error:
                return "", str(error)
            return key, store.save(name, mask, palette)

        results = pool.map(drawn_file, annotated.images)
        for number, (entry, (key, found)) in enumerate(
            zip(annotated.images, results, strict=True), 1
        ):
            if isinstance(found, str):
                problems.append(found)
                continue
            store.note(key, found)
            drawn.add(entry.image, f"{DRAWN}/{names[entry.image]}.png", found)
            drawn.add_overlaps(found.overlaps)
            progress.update(number, images=1)
        if problems:
            _refuse(root, annotated, problems)
        store.put_in_place([names[entry.image] for entry in annotated.images])


def _draw_tiles(
    root: Path,
    annotated: AnnotatedFolder,
    rules: Rules,
    palette: np.ndarray,
    drawn: DrawnMasks,
    tiles: TileFolder,
) -> None:
    """Cut images and their masks."""
    names = names_for([entry.image for entry in annotated.images])
    problems = list(annotated.problems)
    with Progress("draw masks", len(annotated.images)) as progress:
        for number, entry in enumerate(annotated.images, 1):
            try:
                whole = mask_to_cut(root, entry, rules)
                mask = whole.mask if isinstance(whole, Drawn) else whole
                for tile, part in tiles.cut(entry.image, names[entry.image], mask, palette):
                    drawn.add(tile.image, tile.mask, counts_of(part, Counter()))
                if isinstance(whole, Drawn):
                    drawn.add_overlaps(whole.overlaps)
            except SetrError as error:
                problems.append(str(error))
                continue
            progress.update(number, images=1)
    if problems:
        _refuse(root, annotated, problems)


@contextlib.contextmanager
def _cancelled(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """A pool that begins nothing more after an error or an interruption."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _require_known(order: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Refuse an order of classes that do not occur, or that occur twice."""
    for name in order:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean '{near}'?" if near else f"they are {', '.join(names[:SHOWN])}"
            raise UsageError(f"--order {','.join(order)}: no class '{name}'; {hint}")
    if len(set(order)) < len(order):
        raise UsageError(f"--order {','.join(order)}: name each class once")


def _refuse(root: Path, annotated: AnnotatedFolder, problems: list[str]) -> NoReturn:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    listed = joined_problems(problems)
    raise DataError(f"{root}: {count} with outlines ({annotated.kind}): {listed}")


def _with_rest(names: tuple[str, ...], rest: str) -> tuple[str, ...]:
    """All classes in the order of their ids: those of the outlines, then `rest` if it is new."""
    if rest not in NOT_COUNTED:
        names = tuple(dict.fromkeys((*names, rest)))
    if len(names) < 2:
        raise UsageError(
            f"--rest {rest}: the outlines have a single class, '{names[0]}'; give another class "
            "for the pixels outside them"
        )
    return names


def left_out_text(left_out: dict[str, int]) -> str:
    """Message on annotations that were left out; empty if there are none."""
    parts = [f"{count} {what}" for what, count in left_out.items()]
    return f"left out, because they have no area: {', '.join(parts)}" if parts else ""


def overlaps_text(drawn: DrawnMasks, order: tuple[str, ...]) -> str:
    """Message on classes that cover each other; empty if none do."""
    if not drawn.overlaps:
        return ""
    shown = ", ".join(
        f"{above} over {below} ({pixels:,} pixels)"
        for (above, below), pixels in drawn.overlaps.most_common(OVERLAPS_SHOWN)
    )
    more = ", …" if len(drawn.overlaps) > OVERLAPS_SHOWN else ""
    rule = (
        "as --order says" if order else "smaller areas cover larger ones, unless --order is given"
    )
    return f"classes overlap in {drawn.overlapped} images, {rule}: {shown}{more}"
