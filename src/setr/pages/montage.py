"""Pictures with captions in a grid, as one image for a paper or a slide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from setr.labels import Labels
from setr.pages.lettering import fitted, lettered

GAP, CAPTION, LINE = 8, 24, 26
WIDTH = 320
"""Of a column in pixels, unless another is given."""
Panel = tuple[np.ndarray, str]
"""A picture uint8 RGB (H, W, 3) and its caption."""


def fitted_size(picture: np.ndarray, width: int) -> tuple[int, int]:
    """Size (width, height) of a picture scaled to `width`, or to a height of four times `width`."""
    H, W = picture.shape[:2]
    scale = min(width / W, 4 * width / H)
    return max(1, round(W * scale)), max(1, round(H * scale))


def shrunk(picture: np.ndarray, width: int, how: int = cv2.INTER_AREA) -> np.ndarray:
    """A picture at its `fitted_size`, never enlarged."""
    size = fitted_size(picture, width)
    if size >= (picture.shape[1], picture.shape[0]):
        return picture
    return cv2.resize(picture, size, interpolation=how)


def montage(rows: Iterable[Sequence[Panel]], *, width: int = WIDTH) -> np.ndarray:
    """Rows of pictures with captions below, in columns of equal width, uint8 RGB on white.

    Args:
        rows: panels row by row.
        width: of every column in pixels; a picture is at most four times as high.
    """
    strips = []
    for row in rows:
        tiles = [_tile(picture, caption, width) for picture, caption in row]
        height = max(tile.shape[0] for tile in tiles)
        strips.append(np.concatenate([_grown(tile, height) for tile in tiles], axis=1))
    total = max(strip.shape[1] for strip in strips)
    return np.concatenate([_grown(strip, strip.shape[0], total) for strip in strips])


def with_legend(picture: np.ndarray, labels: Labels, ids: Iterable[int]) -> np.ndarray:
    """A picture with the names and colours of classes below it.

    A name whose letters no font of this machine has is replaced by the class's number.
    """
    entries, x, y = [], GAP, 0
    for i in ids:
        if i >= len(labels.classes):
            continue
        font, name = lettered(labels.classes[i], f"class {i}")
        length = 22 + int(font.getlength(name)) + 14
        if x + length > picture.shape[1] and x > GAP:
            x, y = GAP, y + LINE
        entries.append((x, y, i, font, name))
        x += length
    strip = Image.new("RGB", (picture.shape[1], y + LINE + GAP), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, i, font, name in entries:
        draw.rectangle((x, y + 4, x + 16, y + 20), fill=tuple(labels.colours[i]), outline="grey")
        draw.text((x + 22, y + 4), name, fill="black", font=font)
    return np.concatenate([picture, np.asarray(strip)])


def mark(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """A copy with a ring around a point, black on white so that it is visible on any background."""
    copy = np.array(picture, order="C")
    radius = max(4, round(0.02 * max(picture.shape[:2])))
    for colour, thickness in (
        ((255, 255, 255), max(3, radius // 2)),
        ((0, 0, 0), max(1, radius // 5)),
    ):
        cv2.circle(copy, (round(x), round(y)), radius, colour, thickness, cv2.LINE_AA)
    return copy


def _tile(picture: np.ndarray, caption: str, width: int) -> np.ndarray:
    size = fitted_size(picture, width)
    how = cv2.INTER_AREA if size[0] < picture.shape[1] else cv2.INTER_NEAREST
    picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=how)
    tile = Image.new("RGB", (width + GAP, size[1] + CAPTION + GAP), "white")
    tile.paste(Image.fromarray(picture), (GAP // 2, GAP // 2))
    font, text = lettered(caption)
    place = GAP // 2 + 2, size[1] + GAP // 2 + 4
    ImageDraw.Draw(tile).text(place, fitted(font, text, width - 4), fill="black", font=font)
    return np.asarray(tile)


def _grown(picture: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    missing = height - picture.shape[0], (width or picture.shape[1]) - picture.shape[1]
    return np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=255)
