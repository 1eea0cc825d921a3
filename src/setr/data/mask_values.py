"""Counts the ids or colours in mask files, before it is known what they mean."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from setr.colours import packed_colours
from setr.errors import DataError, SetrError
from setr.labels import IGNORE
from setr.processes.progress import Progress
from setr.reading.masks import ColourMaskError, is_reordered, painted, read_mask

MAX_VALUES = 256
"""With more ids or colours than this, they cannot be classes."""
SCATTERED = 0.25
"""Ids are scattered if their right and lower neighbour equal them at fewer of their pixels."""


class MaskValues(NamedTuple):
    """The values in the masks of a folder: ids, or colours as 0xrrggbb.

    Attributes:
        ids: pixels of each id; empty if the masks contain colours.
        colours: pixels of each colour.
        by_mask: the values in each mask file.
        scattered: ids that form no areas, as lossy compression and soft edges make them.
    """

    ids: Counter[int]
    colours: Counter[int]
    by_mask: dict[str, frozenset[int]]
    scattered: frozenset[int]


def count_values(root: Path, masks: list[str]) -> MaskValues:
    """Read all masks.

    Grey masks are read as colours if others have colours (a grey one may be an image without
    objects), or if their palettes order the same colours differently, because the program that
    wrote them numbers colours per file.

    Raises:
        SetrError: too many ids or colours, a mixture of both, or an unreadable mask (exit code 3).
    """
    ids: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    inside: Counter[int] = Counter()
    by_mask: dict[str, frozenset[int]] = {}
    grey: list[str] = []
    pairs: set[tuple[int, int]] = set()  # id and colour
    with Progress("read masks", len(masks)) as progress:
        for done, name in enumerate(masks, 1):
            try:
                mask = read_mask(root / name)
                by_mask[name] = _count(root, mask, ids, "ids")
                inside.update(_inside(mask))
                grey.append(name)
                pairs |= painted(root / name, by_mask[name])
            except ColourMaskError:
                found = packed_colours(read_mask(root / name, rgb=True))
                by_mask[name] = _count(root, found, colours, "colours")
            except SetrError as error:
                raise DataError(str(error)) from None
            progress.update(done, images=1)
    if not ids or not (colours or is_reordered(pairs)):
        scattered = (i for i, count in ids.items() if inside[i] < SCATTERED * count)
        return MaskValues(ids, colours, by_mask, frozenset(scattered))
    for name in grey:
        try:
            values = packed_colours(read_mask(root / name, rgb=True))
        except SetrError:
            raise DataError(
                f"{root}: some masks contain ids ({name}), others colours; export all in one way"
            ) from None
        by_mask[name] = _count(root, values, colours, "colours")
    return MaskValues(Counter(), colours, by_mask, frozenset())


def _count(root: Path, values: np.ndarray, counts: Counter[int], kind: str) -> frozenset[int]:
    """Add the pixels of a mask to `counts`; returns its distinct values."""
    found = _pixels(values)
    counts.update(found)
    if len(counts) > MAX_VALUES:
        raise DataError(
            f"{root}: the masks contain more than {MAX_VALUES} {kind}; they may be blurred, "
            "numbered by object, or photos: export one id or colour per class, for at most "
            f"{IGNORE} classes; if there are two, dark and bright, add --threshold 128"
        )
    return frozenset(found)


def _inside(mask: np.ndarray) -> dict[int, int]:
    """Pixels of each id whose right and lower neighbour have that id, too."""
    own = mask[:-1, :-1]
    return _pixels(own[(own == mask[:-1, 1:]) & (own == mask[1:, :-1])])


def _pixels(values: np.ndarray) -> dict[int, int]:
    if values.dtype.itemsize <= 2:  # ids; faster
        counts = np.bincount(values.ravel())
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    unique, pixels = np.unique(values, return_counts=True)
    return dict(zip(unique.tolist(), pixels.tolist(), strict=True))
