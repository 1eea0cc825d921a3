"""Drafts the classes in `data.yaml`: ids or colours that the masks contain, and their names."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Set
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from setr.data.class_files import names_by_colour, names_by_id
from setr.data.mask_values import MaskValues, count_values
from setr.errors import DataError, first_few
from setr.labels import marks_no_class
from setr.reading.files import printable
from setr.reading.masks import IN_ALPHA, is_in_alpha, read_mask

MAX_BLENDED = 10
"""More scattered ids, or rare colours between two frequent ones, are no classes."""
BESIDE = 2
"""Scattered ids that differ from all others by this or less are no classes, even if few."""


_UNQUOTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON leaves as they are in a text, and that YAML does not."""


class DraftedClasses(NamedTuple):
    """The classes of a folder's masks.

    Attributes:
        lines: for `data.yaml`.
        by_mask: ids or colours of the classes in each mask file.
        note: message on masks that do not contain what was drawn; empty if there is none.
    """

    lines: list[str]
    by_mask: dict[str, frozenset[int]]
    note: str


def draft_classes(root: Path, masks: list[str]) -> DraftedClasses:
    """The classes in mask files, with names from a file beside the masks if there is one.

    Raises:
        SetrError: too many ids or colours, a mixture of both, or an unreadable mask (exit code 3).
    """
    values = count_values(root, masks)
    if len(values.ids) + len(values.colours) == 1:
        _require_opaque(root, masks, rgb=bool(values.colours))
    if values.colours:
        names = names_by_colour(root)
        lines = _colour_classes(values.colours, names)
        kept = {colour for colour in values.colours if names.get(colour) != "ignore"}
    else:
        names = names_by_id(root) or _names_of_greys(root, values.ids)
        lines = _id_classes(values.ids, names)
        kept = set(_classes_by_id(values.ids, names))
    by_mask = {mask: found & kept for mask, found in values.by_mask.items()}
    drafted = values.colours or values.ids
    hints = _no_class_hints([name for key, name in names.items() if key in drafted])
    return DraftedClasses([*hints, *lines], by_mask, _scattered_text(values))


def _no_class_hints(names: list[str]) -> list[str]:
    """Comments on classes that are called like pixels without a label."""
    return [
        f"# {_quote(name)} is a class; if it means pixels without a label, map it to ignore below, "
        "and take it out of classes"
        for name in names
        if marks_no_class(name)
    ]


def _names_of_greys(root: Path, ids: Counter[int]) -> dict[int, str]:
    """Names of ids that are the grey colours of a file of colours, as black and white masks have.

    Empty unless all ids are in it.
    """
    names = names_by_colour(root)
    greys = {colour & 255: name for colour, name in names.items() if colour % 0x010101 == 0}
    return greys if ids.keys() <= greys.keys() else {}


def _scattered_text(values: MaskValues) -> str:
    """Message on ids that form no areas; empty if there are few of them."""
    solid = set(values.ids) - values.scattered
    if len(values.scattered) <= MAX_BLENDED and not _are_fringes(values.scattered, solid):
        return ""
    return (
        f"{len(values.scattered)} of {len(values.ids)} ids in the masks form no areas, as after "
        "lossy compression (JPEG, even if saved as PNG later) or at anti-aliased edges; export the "
        "masks from their source again, as PNG without anti-aliasing; if there are two classes, "
        "--threshold 128 draws them anew"
    )


def _are_fringes(scattered: Set[int], solid: Set[int]) -> bool:
    """Whether each of several ids, far from the others, has a scattered one next to it.

    JPEG of the highest quality makes them: 1 and 254 from 0 and 255. Thin classes are not like
    this, since ids of classes are consecutive numbers.
    """
    order = sorted(solid)
    far = all(b - a > 2 * BESIDE for a, b in pairwise(order))
    beside = (any(abs(i - other) <= BESIDE for other in scattered) for i in order)
    return len(order) > 1 and far and all(beside)


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


def _require_opaque(root: Path, masks: list[str], *, rgb: bool) -> None:
    """Raise an error if a mask is drawn in its alpha channel only."""
    for name in masks:
        if is_in_alpha(root / name, read_mask(root / name, rgb=rgb)):
            raise DataError(f"{root / name}: {IN_ALPHA}")


def _id_classes(ids: Counter[int], names: dict[int, str]) -> list[str]:
    classes = _classes_by_id(ids, names)
    if _is_binary(ids, names):
        first, second = map(_quote, classes.values())
        return [
            "# the masks contain only 0 and 255: 255 is a class here, not ignored",
            f"classes: [{first}, {second}]",
            f"label_map: {{0: {first}, 255: {second}}}",
        ]
    return [*_hints(ids, names), *listed_classes(classes, ids)]


def _is_binary(ids: Counter[int], names: dict[int, str]) -> bool:
    return set(ids) <= {0, 255} and 255 in ids and len(names) < 3


def _classes_by_id(ids: Counter[int], names: dict[int, str]) -> dict[int, str]:
    """Names of the classes; ids that are left out are ignored."""
    if _is_binary(ids, names):
        first, second = names.values() if len(names) == 2 else ("background", "foreground")
        return {0: first, 255: second}
    named = names or {i: f"class_{i}" for i in sorted(set(ids) - {255})}
    return {i: name for i, name in named.items() if name != "ignore"}


def _hints(ids: Counter[int], names: dict[int, str]) -> list[str]:
    """Comments on what to check in the drafted classes."""
    if names:
        unnamed = [str(i) for i in sorted(set(ids) - set(names) - {255})]
        shown = first_few(unnamed, 5)
        return unnamed and [
            f"# the file of class names has no name for {shown}: ignored. If the background (id",
            "# 0) is missing, add it as the first name there and run this again with --overwrite",
        ]
    return ["# name the classes, here and in label_map; map ids to leave out to 'ignore'"]


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
    """A name in quotes, with characters escaped that YAML forbids or takes for the end of a line.

    Raises:
        SetrError: half of a character (exit code 3).
    """
    if printable(name) != name:
        raise DataError(f"class {name!a:.80}: is no valid text; write its name again")
    quoted = json.dumps(name, ensure_ascii=False)
    return _UNQUOTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
