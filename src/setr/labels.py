"""Class names, colours, and the explicit map from ids in files to training ids.

Ids are never shifted implicitly: a `Labels` object maps every raw id to a class or `IGNORE`, and
unlisted ids are an error. Training ids are 0 .. K-1, `IGNORE` is 255. Masks with RGB colours have a
colour map instead, matched exactly. Known data sets are JSON files in the package, which name their
sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import cv2
import numpy as np

from setr.arguments.typed import plain
from setr.colours import Colour, as_colour, draw_colours, hex_colour, packed_colours
from setr.errors import SetrError, UsageError, nearest
from setr.reading.files import printable

IGNORE = 255
"""Training id of pixels that are ignored by losses and metrics."""


@dataclass(frozen=True)
class Labels:
    """The classes of a data set.

    Args:
        classes: K names in training-id order, at most 255, unique.
        colours: K RGB colours, 0 .. 255, or as "#rrggbb"; generated if empty.
        label_map: raw id in the mask files, 0 .. 65535, -> training id or `IGNORE`, or the name of
            a class or "ignore". Empty means identity, with raw 255 ignored.
        colour_map: RGB colour in the mask files -> the same, for masks that contain colours. None
            means masks contain ids.

    Raises:
        SetrError: names that are not unique or no text, another number of colours, or values out of
            range.
    """

    classes: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    label_map: Mapping[int, Any] | None = None
    colour_map: Mapping[Colour, Any] | None = None

    def __post_init__(self) -> None:
        given = self.classes
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
            raise UsageError(
                f"classes {given!r:.100}: give the names one by one, as ('road', 'car')"
            )
        classes = tuple(map(str, given))
        K = len(classes)
        if not 1 <= K <= 255:
            raise SetrError(f"{K} classes: a data set needs 1 to 255 classes")
        for name in classes:
            if printable(name) != name:  # half of a character, which no file or page can hold
                raise SetrError(f"class {name!a:.80}: is no valid text; write its name again")
        duplicates = sorted({c for c in classes if classes.count(c) > 1})
        if duplicates:
            raise SetrError(f"class '{duplicates[0]}' is listed twice; class names must be unique")
        if isinstance(self.colours, str | Mapping) or not isinstance(self.colours, Iterable):
            raise SetrError(f"colours {self.colours!r:.100}: give a list with one colour per class")
        colours = tuple(map(as_colour, self.colours)) or draw_colours(K)
        if len(colours) != K:
            raise SetrError(f"{len(colours)} colours for {K} classes; give one colour each")
        label_map = {
            _raw_id(raw): _train_id("label_map", target, classes)
            for raw, target in as_label_map(self.label_map).items()
        }
        if self.colour_map is not None and not isinstance(self.colour_map, Mapping):
            raise SetrError("colour_map: give 'classes' or a table of colour: class")
        colour_map = {
            as_colour(colour): _train_id("colour_map", target, classes)
            for colour, target in (self.colour_map or {}).items()
        }
        # of plain types, so that equal labels compare equal and can be written
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "colours", colours)
        object.__setattr__(self, "label_map", label_map or _identity(K))
        object.__setattr__(self, "colour_map", colour_map or None)

    @property
    def is_numbered(self) -> bool:
        """Whether ids in masks are the training ids, and 255 to ignore."""
        return self.label_map == _identity(len(self.classes))

    @cached_property
    def _lookup(self) -> np.ndarray:
        table = np.full(65536, -1, dtype=np.int16)
        for raw, train in (self.label_map or {}).items():
            table[raw] = train
        return table

    @cached_property
    def _lookup8(self) -> tuple[np.ndarray, np.ndarray]:
        """For 8-bit masks: the training id of each raw id, and whether it is listed."""
        table = self._lookup[:256]
        return table.astype(np.uint8), table >= 0

    @cached_property
    def _colour_lookup(self) -> np.ndarray:
        table = np.full(1 << 24, -1, dtype=np.int16)
        for (r, g, b), train in (self.colour_map or {}).items():
            table[r << 16 | g << 8 | b] = train
        return table

    def to_train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Raw ids (H, W) or, with a colour map, RGB colours (H, W, 3) -> training ids (H, W) uint8.

        Raises:
            SetrError: unlisted ids or colours, with value, pixel count and first position.
        """
        if raw.ndim == 2 and raw.dtype == np.uint8:
            known, listed = self._lookup8
            used = cv2.calcHist([raw], [0], None, [256], [0, 256]).ravel() > 0
            if not (used & ~listed).any():
                return cv2.LUT(raw, known)
        ids = self.look_up(raw)
        if (ids < 0).any():
            raise SetrError(self._unlisted(raw, ids < 0))
        return ids.astype(np.uint8)

    def look_up(self, raw: np.ndarray) -> np.ndarray:
        """Like `to_train_ids`, but int16 with -1 for unlisted ids or colours."""
        if raw.ndim == 3:
            return np.asarray(self._colour_lookup[packed_colours(raw)])
        return np.asarray(self._lookup[raw])

    def _unlisted(self, raw: np.ndarray, bad: np.ndarray) -> str:
        raw = packed_colours(raw) if raw.ndim == 3 else raw
        values, counts = np.unique(raw[bad], return_counts=True)
        name = (lambda v: hex_colour((v >> 16, v >> 8 & 255, v & 255))) if self.colour_map else str
        shown = ", ".join(
            f"{name(int(v))} ({n} px)" for v, n in zip(values[:5], counts[:5], strict=True)
        )
        more = f" and {len(values) - 5} more values" if len(values) > 5 else ""
        y, x = np.unravel_index(int(bad.argmax()), bad.shape)
        kind, key = ("colours", "colour_map") if self.colour_map else ("ids", "label_map")
        from_one = (
            self.is_numbered and not self.colour_map and values.tolist() == [len(self.classes)]
        )
        fix = (
            f"if ids begin at 1, map all of them: label_map: {{1: {self.classes[0]}, …}}, else add "
            "this one as a class or 'ignore'"
            if from_one
            else f"add them to {key} as a class or 'ignore'"
        )
        return (
            f"{kind} outside the {len(self.classes)} classes: {shown}{more}, first at x={x} y={y}; "
            f"{fix}"
        )

    @cached_property
    def palette(self) -> np.ndarray:
        """(256, 3) uint8 colours by training id; ids without a class are black."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(self.colours)] = self.colours
        return table

    def to_dict(self) -> dict[str, Any]:
        """Classes, colours and maps as a JSON-serialisable dictionary, with 'ignore' as text."""
        values: dict[str, Any] = {
            "classes": list(self.classes),
            "colours": [list(c) for c in self.colours],
            "label_map": {str(r): _spell(t) for r, t in (self.label_map or {}).items()},
        }
        if self.colour_map:
            values["colour_map"] = {hex_colour(c): _spell(t) for c, t in self.colour_map.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """The inverse of `to_dict`; maps may also use class names.

        `colour_map: classes` uses the colours of the classes.

        Raises:
            SetrError: as `Labels`.
        """
        classes, colours = values["classes"], values.get("colours") or ()
        by_colour = values.get("colour_map")
        if by_colour == "classes":
            own = cls(classes, colours)
            by_colour = dict(zip(own.colours, own.classes, strict=True)) if colours else {}
            if len(by_colour) < len(own.classes):
                raise SetrError("colour_map: classes needs one colour per class, all different")
        return cls(classes, colours, values.get("label_map"), by_colour)


_NO_CLASS = re.compile(
    r"void|un-?label+ed|unknown|undefined|unclassified|invalid|no[ _-]?data|don.?t[ _-]?care", re.I
)


def marks_no_class(name: str) -> bool:
    """Whether a class has the name of pixels that data sets leave out, such as CamVid's `Void`."""
    return bool(_NO_CLASS.fullmatch(name.strip()))


def as_label_map(value: Any) -> Mapping[Any, Any]:
    """The `label_map` of a file as a mapping; empty for None.

    Raises:
        SetrError: not a mapping.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SetrError(f"label_map {value!r}: give a table of id: class, as {{0: road, 7: car}}")
    return value


def _spell(train: int) -> int | str:
    return "ignore" if train == IGNORE else train


def _raw_id(value: Any) -> int:
    """An id, also as text, because JSON keys are text."""
    given, value = value, plain(value)
    is_id = type(value) is int or (isinstance(value, str) and value.strip().isdecimal())
    if is_id and 0 <= int(value) <= 65535:
        return int(value)
    raise SetrError(f"label_map key {given!r}: raw ids are whole numbers from 0 to 65535")


def _identity(count: int) -> dict[int, int]:
    """The label map of masks that hold training ids, and 255 to ignore."""
    return {**{i: i for i in range(count)}, IGNORE: IGNORE}


def _train_id(key: str, value: Any, classes: Sequence[str]) -> int:
    """The training id that a map names by a class, its number, or `ignore`."""
    given, value = value, plain(value)
    if value == "ignore":
        return IGNORE
    if isinstance(value, str):
        if value not in classes:
            near = nearest(value, classes)
            hint = f"; did you mean '{near}'?" if near else "; use a class name or 'ignore'"
            if re.fullmatch(r"class_\d+", value):  # a placeholder from `setr init-data`
                hint = "; if you have given it a name there, write that name here, too"
            raise SetrError(f"{key} value {value!r} is not among the classes{hint}")
        return list(classes).index(value)
    if type(value) is not int:
        raise SetrError(f"{key} value {given!r}: give a class name, its number, or 'ignore'")
    if not 0 <= value < len(classes) and value != IGNORE:
        raise SetrError(f"{key} value {value}: classes are 0..{len(classes) - 1}, or 'ignore'")
    return value


def known_datasets() -> list[str]:
    """Names of the data sets whose classes are part of the package."""
    folder = resources.files("setr") / "data"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json"))


def known_labels(name: str) -> Labels:
    """The classes of a known data set, with the ids of its released masks.

    Args:
        name: one of `known_datasets()`; `NAME:ENCODING` for masks with other ids, such as
            `cityscapes:train_ids` or `pascal_context:mat`.

    Raises:
        SetrError: unknown name or encoding; the known ones are listed.
    """
    base, _, encoding = name.partition(":")
    if base not in known_datasets():
        raise UsageError(f"data set '{base}' is unknown; known: {', '.join(known_datasets())}")
    text = (resources.files("setr") / "data" / f"{base}.json").read_text(encoding="utf-8")
    values = json.loads(text)
    if encoding:
        encodings = values.get("encodings", {})
        if encoding not in encodings:
            listed = ", ".join(f"{base}:{e}" for e in encodings) or "none"
            raise SetrError(f"{base} has no ids '{encoding}'; besides its own: {listed}")
        values["label_map"] = encodings[encoding]
    return Labels.from_dict(values)


def known_name(labels: Labels) -> str | None:
    """The known data set that has these classes, if any."""
    same = (name for name in known_datasets() if known_labels(name).classes == labels.classes)
    return next(same, None)
