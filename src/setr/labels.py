"""Class names, colours and the explicit map from ids in files to training ids.

There is no implicit shift anywhere: a `Labels` object says for every raw id which class it is, or
that it is ignored; an id it does not list is an error. Training ids are 0 .. K-1, `IGNORE` = 255.
Known data sets are JSON files in the package; each names its source.
"""

from __future__ import annotations

import colorsys
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np

from setr.errors import SetrError

IGNORE = 255
"""The training id of pixels that neither the loss nor the metric counts."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Labels:
    """The classes of a data set.

    Args:
        classes: K names in training-id order, at most 255, unique.
        colours: K RGB colours, 0 .. 255; drawn colours if empty.
        label_map: raw id in the mask files -> training id, or `IGNORE`. Raw ids are 0 .. 65535.
            Empty means identity, with raw 255 ignored.
    """

    classes: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    label_map: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        K = len(self.classes)
        if not 1 <= K <= 255:
            raise SetrError(f"{K} classes: a data set needs 1 to 255 classes")
        double = sorted({c for c in self.classes if self.classes.count(c) > 1})
        if double:
            raise SetrError(f"class '{double[0]}' is listed twice; class names must be unique")
        if not self.colours:
            object.__setattr__(self, "colours", draw_colours(K))
        if len(self.colours) != K:
            raise SetrError(f"{len(self.colours)} colours for {K} classes; give one colour each")
        bad = [c for c in self.colours if len(c) != 3 or not all(0 <= v <= 255 for v in c)]
        if bad:
            raise SetrError(f"colour {bad[0]}: give red, green, blue from 0 to 255")
        if not self.label_map:
            identity = {**{i: i for i in range(K)}, IGNORE: IGNORE}
            object.__setattr__(self, "label_map", identity)
        for raw, train in (self.label_map or {}).items():
            if not 0 <= raw <= 65535 or not (0 <= train < K or train == IGNORE):
                raise SetrError(
                    f"label_map {raw}: {train}: raw ids are 0..65535 and classes 0..{K - 1} "
                    "or 'ignore'"
                )

    @cached_property
    def _lookup(self) -> np.ndarray:
        table = np.full(65536, -1, dtype=np.int16)
        for raw, train in (self.label_map or {}).items():
            table[raw] = train
        return table

    def to_train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Raw ids (H, W) -> training ids (H, W) uint8.

        Raises:
            SetrError: ids the label map does not list, with value and pixel count.
        """
        ids = self._lookup[raw]
        if (ids < 0).any():
            values, counts = np.unique(raw[ids < 0], return_counts=True)
            shown = ", ".join(f"{v} ({n} px)" for v, n in zip(values[:5], counts[:5], strict=True))
            raise SetrError(
                f"ids outside the {len(self.classes)} classes: {shown}; add them to label_map as a "
                "class or 'ignore'"
            )
        return ids.astype(np.uint8)

    @cached_property
    def palette(self) -> np.ndarray:
        """(256, 3) uint8 colours by training id; ids without a class are black."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(self.colours)] = self.colours
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: classes, colours, label_map with 'ignore' spelled out."""
        named = {str(r): "ignore" if t == IGNORE else t for r, t in (self.label_map or {}).items()}
        return {"classes": list(self.classes), "colours": [list(c) for c in self.colours],
                "label_map": named}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """The reverse of `to_dict`; a label map may also name classes.

        Raises:
            SetrError: a class name the list does not have, or values of the wrong kind.
        """
        classes = tuple(str(c) for c in values["classes"])
        colours = tuple((int(c[0]), int(c[1]), int(c[2])) for c in values.get("colours") or ())
        given = values.get("label_map") or {}
        return cls(classes, colours, {_raw_id(r): _train_id(t, classes) for r, t in given.items()})


def _raw_id(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise SetrError(f"label_map key '{value}': raw ids are whole numbers") from None


def _train_id(value: Any, classes: Sequence[str]) -> int:
    if value == "ignore":
        return IGNORE
    if isinstance(value, str):
        if value not in classes:
            near = difflib.get_close_matches(value, classes, 1)
            hint = f"; did you mean '{near[0]}'?" if near else "; use a class name or 'ignore'"
            raise SetrError(f"label_map value '{value}' is not among the classes{hint}")
        return list(classes).index(value)
    return int(value)


def draw_colours(count: int) -> tuple[Colour, ...]:
    """Distinct colours: hues by the golden ratio, lightness alternating."""
    colours = []
    for i in range(count):
        r, g, b = colorsys.hls_to_rgb((i * 0.618034) % 1.0, (0.45, 0.65, 0.3)[i % 3], 0.65)
        colours.append((round(r * 255), round(g * 255), round(b * 255)))
    return tuple(colours)


def known_datasets() -> list[str]:
    """Names of the data sets whose classes ship with the package."""
    folder = resources.files("setr") / "data"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json"))


def known_labels(name: str) -> Labels:
    """The classes of a known data set.

    Raises:
        SetrError: unknown name; the known ones are listed.
    """
    if name not in known_datasets():
        raise SetrError(f"data set '{name}' is unknown; known: {', '.join(known_datasets())}")
    text = (resources.files("setr") / "data" / f"{name}.json").read_text(encoding="utf-8")
    return Labels.from_dict(json.loads(text))
