"""RGB colours of classes: read and written as text, packed into one number, made up."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

from setr.arguments.typed import plain
from setr.errors import SetrError

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def as_colour(value: Any) -> Colour:
    """The colour given as `[r, g, b]`, `"r, g, b"` or `"#rrggbb"`, from 0 to 255.

    Raises:
        SetrError: another form, or a number out of range.
    """
    parts: Any
    try:
        if isinstance(value, str) and value.startswith("#"):
            parts = list(bytes.fromhex(value[1:]))
        else:
            parts = value.split(",") if isinstance(value, str) else plain(value)
        red, green, blue = (int(str(part)) for part in parts)  # not 0.5, as Matplotlib has them
    except (TypeError, ValueError, OverflowError):
        raise SetrError(f"colour {value!r:.80}: give [red, green, blue] or '#rrggbb'") from None
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise SetrError(f"colour {value!r:.80}: give red, green, blue from 0 to 255")
    return red, green, blue


def hex_colour(colour: Sequence[int]) -> str:
    """(112, 128, 144) -> #708090."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def packed_colours(colours: np.ndarray) -> np.ndarray:
    """RGB colours (H, W, 3) as 0xrrggbb (H, W)."""
    rgb = colours.astype(np.int32)
    return np.asarray(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])


def draw_colours(count: int) -> tuple[Colour, ...]:
    """Distinct colours: hues spaced by the golden ratio, alternating lightness."""
    colours = []
    for i in range(count):
        r, g, b = colorsys.hls_to_rgb((i * 0.618034) % 1.0, (0.45, 0.65, 0.3)[i % 3], 0.65)
        colours.append((round(r * 255), round(g * 255), round(b * 255)))
    return tuple(colours)
