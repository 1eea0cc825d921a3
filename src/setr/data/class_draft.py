"""Lines of a drafted `data.yaml` about classes: ids or colours of masks, and their names."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from setr.data.class_files import names_by_colour, names_by_id
from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.labels import IGNORE
from setr.reading.masks import (
    IN_ALPHA,
    ColourMaskError,
    is_in_alpha,
    is_reordered,
    painted,
    read_mask,
)

MOST_VALUES = 256
"""More ids or colours than this are no classes."""
SOFT = 10
"""More rare ids than this between 0 and 255, both frequent, look like smoothed edges."""


def draft_classes(root: Path, masks: list[str]) -> list[str]:
    """What to write of the classes of masks, with names from a file beside them.

    Raises:
        SetrError: too many ids or colours for classes, both of them, or a mask that cannot be read
            (exit code 3).
    """
    ids, colours = _values(root, masks)
    if len(ids) + len(colours) == 1:
        _require_opaque(root, masks, rgb=bool(colours))
    if colours:
        return _colour_classes(colours, names_by_colour(root))
    return _id_classes(ids, names_by_id(root))


def listed_classes(naming: dict[int, str], ids: Counter[int]) -> list[str]:
    """Classes and their ids, with shares of the pixels; ids without a name are ignored."""
    total = sum(ids.values())
    lines = ["classes:", *(f"  - {_quote(name)}" for name in naming.values())]
    lines.append("label_map:  # id in the masks: class, or ignore")
    lines += [
        f"  {i}: {_quote(name)}  # {100 * ids[i] / total:.2f} % of the pixels"
        for i, name in naming.items()
    ]
    ignored = sorted(set(ids) - set(naming))
    return lines + [f"  {i}: ignore  # {100 * ids[i] / total:.2f} % of the pixels" for i in ignored]


def _values(root: Path, masks: list[str]) -> tuple[Counter[int], Counter[int]]:
    """Pixel counts of the ids, or of the colours (as 0xrrggbb), over all masks.

    Among masks of colours, one that is grey all over (an image without objects) holds colours, too.
    So do masks with palettes in several orders, as programs save them that number the colours of
    each file anew.
    """
    ids: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    grey: list[str] = []
    pairs: set[tuple[int, int]] = set()  # id and colour
    for name in masks:
        try:
            used = _count(root, read_mask(root / name), ids, "ids")
            grey.append(name)
            pairs |= painted(root / name, used)
        except ColourMaskError:
            _count(root, _packed_colours(root / name), colours, "colours")
        except SetrError as error:
            raise SetrError(str(error), code=DATA_CHECK_FAILED) from None
    if not ids or not (colours or is_reordered(pairs)):
        return ids, colours
    for name in grey:
        try:
            values = _packed_colours(root / name)
        except SetrError:
            raise SetrError(
                f"{root}: some masks hold ids, as {name}, others colours; export all in one way",
                code=DATA_CHECK_FAILED,
            ) from None
        _count(root, values, colours, "colours")
    return Counter(), colours


def _require_opaque(root: Path, masks: list[str], *, rgb: bool) -> None:
    """Refuse masks of one value, of which some hold a picture in their alpha."""
    for name in masks:
        if is_in_alpha(root / name, read_mask(root / name, rgb=rgb)):
            raise SetrError(f"{root / name}: {IN_ALPHA}", code=DATA_CHECK_FAILED)


def _count(root: Path, values: np.ndarray, counts: Counter[int], kind: str) -> list[int]:
    """Add the pixels of a mask; returns its values."""
    unique, pixels = np.unique(values, return_counts=True)
    counts.update(dict(zip(unique.tolist(), pixels.tolist(), strict=True)))
    if len(counts) > MOST_VALUES:
        raise SetrError(
            f"{root}: the masks hold more than {MOST_VALUES} {kind}; such masks are blurred, "
            "numbered by object, or photos: export one id or colour per class, of at most "
            f"{IGNORE} classes",
            code=DATA_CHECK_FAILED,
        )
    found: list[int] = unique.tolist()
    return found


def _packed_colours(mask: Path) -> np.ndarray:
    """The colours (H, W) of a mask as 0xrrggbb."""
    rgb = read_mask(mask, rgb=True).astype(np.int32)
    packed: np.ndarray = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    return packed


def _id_classes(ids: Counter[int], names: dict[int, str]) -> list[str]:
    if set(ids) <= {0, 255} and 255 in ids and len(names) < 3:
        first, second = names.values() if len(names) == 2 else ("background", "foreground")
        return [
            "# the masks hold 0 and 255 only: 255 is taken as a class here, not as ignore",
            f"classes: [{_quote(first)}, {_quote(second)}]",
            f"label_map: {{0: {_quote(first)}, 255: {_quote(second)}}}",
        ]
    naming = names or {i: f"class_{i}" for i in sorted(set(ids) - {255})}
    naming = {i: name for i, name in naming.items() if name != "ignore"}
    return [*_hints(ids, names), *listed_classes(naming, ids)]


def _hints(ids: Counter[int], names: dict[int, str]) -> list[str]:
    """What a person has to look at in the classes of ids."""
    if names:
        unnamed = [str(i) for i in sorted(set(ids) - set(names) - {255})]
        shown = ", ".join(unnamed[:5]) + (", …" if len(unnamed) > 5 else "")
        return unnamed and [
            f"# the file of classes has no name for {shown}: ignored. If it leaves out id 0, the",
            "# background, write that first there, and run this again with --overwrite",
        ]
    hints = ["# name the classes, here and in label_map; ids to leave out go to 'ignore'"]
    between = [count for i, count in ids.items() if 0 < i < 255]
    if len(between) > SOFT and min(ids[0], ids[255]) > max(between):
        hints.append("# mostly 0 and 255: if soft edges of two classes are between, save hard ones")
    return hints


def _colour_classes(colours: Counter[int], names: dict[int, str]) -> list[str]:
    total = sum(colours.values())
    order = sorted(colours)
    naming = {c: _quote(names[c]) if c in names else f"class_{k}" for k, c in enumerate(order)}
    lines = (
        []
        if set(colours) <= set(names)
        else [
            "# name the classes, here and in colour_map; "
            "colours to leave out go to 'ignore' (and out of classes)"
        ]
    )
    if _mixed(colours) > SOFT:
        lines.append("# most colours lie between two others: save masks without soft edges")
    lines.append("classes:")
    kept = [c for c in order if naming[c] != '"ignore"']
    lines += [f"  {naming[c]}: [{c >> 16}, {c >> 8 & 255}, {c & 255}]" for c in kept]
    lines.append("colour_map:  # colour in the masks: class, or ignore")
    lines += [
        f'  "#{c:06x}": {naming[c]}  # {100 * colours[c] / total:.2f} % of the pixels'
        for c in order
    ]
    return lines


def _mixed(colours: Counter[int]) -> int:
    """How many rare colours lie between two of the frequent ones, as those of soft edges do."""
    least = sum(colours.values()) / 50
    frequent, rare = (
        np.array([(c >> 16, c >> 8 & 255, c & 255) for c in part], np.float64).reshape(-1, 3)
        for part in (
            [c for c, n in colours.items() if (n >= least) == big] for big in (True, False)
        )
    )
    between = np.zeros(len(rare), bool)
    for place, start in enumerate(frequent):
        for line in frequent[place + 1 :] - start:
            share = ((rare - start) @ line / (line @ line)).clip(0, 1)
            between |= np.abs(rare - start - share[:, None] * line).max(axis=1) <= 2
    return int(between.sum())


def _quote(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
