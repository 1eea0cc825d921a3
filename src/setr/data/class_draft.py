"""Drafts the classes in `data.yaml`: ids or colours that the masks contain, and their names."""

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

MAX_VALUES = 256
"""With more ids or colours than this, they cannot be classes."""
MAX_BLENDED = 10
"""More rare values than this between two frequent ones suggest anti-aliased edges."""


def draft_classes(root: Path, masks: list[str]) -> list[str]:
    """Lines for `data.yaml`, with class names from a file beside the masks if there is one.

    Raises:
        SetrError: too many ids or colours, a mixture of both, or an unreadable mask (exit code 3).
    """
    ids, colours = _count_values(root, masks)
    if len(ids) + len(colours) == 1:
        _require_opaque(root, masks, rgb=bool(colours))
    if colours:
        return _colour_classes(colours, names_by_colour(root))
    return _id_classes(ids, names_by_id(root))


def listed_classes(names: dict[int, str], ids: Counter[int]) -> list[str]:
    """Lines of classes and `label_map`, with pixel shares; ids without a name are ignored."""
    total = sum(ids.values())
    lines = ["classes:", *(f"  - {_quote(name)}" for name in names.values())]
    lines.append("label_map:  # id in the masks: class, or ignore")
    lines += [
        f"  {i}: {_quote(name)}  # {100 * ids[i] / total:.2f} % of the pixels"
        for i, name in names.items()
    ]
    ignored = sorted(set(ids) - set(names))
    return lines + [f"  {i}: ignore  # {100 * ids[i] / total:.2f} % of the pixels" for i in ignored]


def _count_values(root: Path, masks: list[str]) -> tuple[Counter[int], Counter[int]]:
    """Pixel counts of the ids, or of the colours (as 0xrrggbb), over all masks.

    Grey masks are read as colours if others have colours (a grey one may be an image without
    objects), or if their palettes order the same colours differently, because the program that
    wrote them numbers colours per file.
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
                f"{root}: some masks contain ids ({name}), others colours; export all in one way",
                code=DATA_CHECK_FAILED,
            ) from None
        _count(root, values, colours, "colours")
    return Counter(), colours


def _require_opaque(root: Path, masks: list[str], *, rgb: bool) -> None:
    """Raise an error if a mask is drawn in its alpha channel only."""
    for name in masks:
        if is_in_alpha(root / name, read_mask(root / name, rgb=rgb)):
            raise SetrError(f"{root / name}: {IN_ALPHA}", code=DATA_CHECK_FAILED)


def _count(root: Path, values: np.ndarray, counts: Counter[int], kind: str) -> list[int]:
    """Add the pixels of a mask to `counts`; returns its distinct values."""
    unique, pixels = np.unique(values, return_counts=True)
    counts.update(dict(zip(unique.tolist(), pixels.tolist(), strict=True)))
    if len(counts) > MAX_VALUES:
        raise SetrError(
            f"{root}: the masks contain more than {MAX_VALUES} {kind}; they may be blurred, "
            "numbered by object, or photos: export one id or colour per class, for at most "
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
            "# the masks contain only 0 and 255: 255 is a class here, not ignored",
            f"classes: [{_quote(first)}, {_quote(second)}]",
            f"label_map: {{0: {_quote(first)}, 255: {_quote(second)}}}",
        ]
    named = names or {i: f"class_{i}" for i in sorted(set(ids) - {255})}
    kept = {i: name for i, name in named.items() if name != "ignore"}
    return [*_hints(ids, names), *listed_classes(kept, ids)]


def _hints(ids: Counter[int], names: dict[int, str]) -> list[str]:
    """Comments on what to check in the drafted classes."""
    if names:
        unnamed = [str(i) for i in sorted(set(ids) - set(names) - {255})]
        shown = ", ".join(unnamed[:5]) + (", …" if len(unnamed) > 5 else "")
        return unnamed and [
            f"# the file of class names has no name for {shown}: ignored. If the background (id",
            "# 0) is missing, add it as the first name there and run this again with --overwrite",
        ]
    hints = ["# name the classes, here and in label_map; map ids to leave out to 'ignore'"]
    between = [count for i, count in ids.items() if 0 < i < 255]
    if len(between) > MAX_BLENDED and min(ids[0], ids[255]) > max(between):
        hints.append(
            "# mostly 0 and 255: if the others are anti-aliased edges, save the masks without them"
        )
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
            "map colours to leave out to 'ignore' and remove them from classes"
        ]
    )
    if _blended(colours) > MAX_BLENDED:
        lines.append("# most colours are mixtures of two others: save masks without anti-aliasing")
    lines.append("classes:")
    kept = [c for c in order if naming[c] != '"ignore"']
    lines += [f"  {naming[c]}: [{c >> 16}, {c >> 8 & 255}, {c & 255}]" for c in kept]
    lines.append("colour_map:  # colour in the masks: class, or ignore")
    lines += [
        f'  "#{c:06x}": {naming[c]}  # {100 * colours[c] / total:.2f} % of the pixels'
        for c in order
    ]
    return lines


def _blended(colours: Counter[int]) -> int:
    """Number of rare colours that are mixtures of two frequent ones, as at anti-aliased edges."""
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
