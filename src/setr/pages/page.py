"""Building blocks of the HTML reports: self-contained files that load nothing from elsewhere.

Pages follow the light or dark setting of the system, and have one column on a phone.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from setr.images import encode_png
from setr.labels import IGNORE, Labels
from setr.pages.montage import shrunk
from setr.reading.files import printable
from setr.writing import write_bytes

WIDTH = 520
"""Pictures are embedded at most this wide, in pixels."""

WRONG, RIGHT, IGNORED = (213, 94, 0), (235, 235, 235), (120, 120, 120)
"""Colours of an error map; vermilion and grey can be told apart by colour-blind readers."""


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page made of HTML parts; the file appears when complete."""
    write_bytes(path, document(title, parts).encode("utf-8", "replace"))


def document(title: str, parts: Iterable[str]) -> str:
    """A page made of HTML parts."""
    skeleton = (resources.files("setr") / "pages" / "page.html").read_text(encoding="utf-8")
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    head, foot = skeleton.split("BODY")
    return head.replace("TITLE", escape(title)) + body + foot


def failures(lines: Sequence[str], result: str = "") -> str:
    """The images that could not be read, of which the first are listed; empty without any.

    Args:
        result: what follows from that, behind the number of images.
    """
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines[:20])
    return f"<p><b>{len(lines)} images failed{result}:</b></p><ul>{listed}</ul>" if lines else ""


def escape(text: str) -> str:
    """Text made safe inside HTML."""
    return html.escape(printable(text))


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, `n/a` for None."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def tiles(items: Iterable[tuple[str, str]]) -> str:
    """A row of tiles, each a value and its caption."""
    return '<div class="tiles">' + "".join(
        f"<div><b>{escape(value)}</b><span>{escape(text)}</span></div>" for value, text in items
    ) + "</div>"  # fmt: skip


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] | None = None
) -> str:
    """A table of HTML cells; columns `numbers`, all but the first by default, are right-aligned."""
    right = range(1, len(head)) if numbers is None else numbers

    def row(cells: Sequence[str], tag: str) -> str:
        scope = " scope=col" if tag == "th" else ""
        return "<tr>" + "".join(
            f"<{tag}{scope}{' class=n' if i in right else ''}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        ) + "</tr>"  # fmt: skip

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table>{row(head, "th")}{body}</table></div>'


def bar(
    value: float | None, colour: str = "var(--accent)", *, full: float = 1.0, digits: int = 1
) -> str:
    """A fraction as a number and a bar; a full bar means `full`."""
    if value is None:
        return "n/a"
    width = 100 * min(max(value / full, 0.0), 1.0)
    return (
        f'<span class="bar"><i style="width:{width:.1f}%;background:{colour}"></i></span>'
        f'<span class="num">{percent(value, digits)}</span>'
    )


def dot(colour: Sequence[int]) -> str:
    """A small square of a colour."""
    return f'<i class="dot" style="background:rgb({",".join(map(str, colour))})"></i>'


def legend(labels: Labels, shown: Iterable[int]) -> str:
    """Class colours of ids with their names; ids without a class are left out."""
    items = [
        f"<span>{dot(labels.colours[i])}{escape(labels.classes[i])}</span>"
        for i in shown
        if i < len(labels.classes)
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def figure(picture: np.ndarray, caption: str, *, photo: bool = False, width: int = WIDTH) -> str:
    """A picture with a caption.

    Args:
        picture: uint8 RGB (H, W, 3), shrunk if wider than `width` or four times as high.
        photo: store as JPEG and shrink smoothly; otherwise colours stay exact.
        width: largest width in pixels.
    """
    how = cv2.INTER_AREA if photo else cv2.INTER_NEAREST
    return embedded(shrunk(picture, width, how), caption, photo=photo)


def embedded(picture: np.ndarray, caption: str, *, photo: bool = False) -> str:
    """`figure` without the shrinking."""
    picture = np.ascontiguousarray(picture)
    if photo:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
        kind, data = "jpeg", buffer.getvalue()
    else:
        kind, data = "png", encode_png(picture)
    text = base64.b64encode(data).decode()
    return (
        f'<figure><img alt="{escape(caption)}" '
        f'src="data:image/{kind};base64,{text}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def error_map(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Ids (H, W) -> uint8 RGB (H, W, 3): wrong, right and ignored pixels."""
    colours = np.array([RIGHT, WRONG, IGNORED], np.uint8)
    kind = np.where(truth == IGNORE, 2, (prediction != truth).astype(np.uint8))
    return np.asarray(colours[kind])


def heat(values: np.ndarray) -> np.ndarray:
    """Values 0 to 1 (H, W) -> uint8 RGB (H, W, 3) in cividis: dark blue, grey, yellow.

    Cividis looks the same to eyes with and without red-green blindness, and its lightness rises
    evenly, so it also survives a grey print.
    """
    levels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_CIVIDIS)[..., ::-1])


def heat_scale(low: str, high: str) -> str:
    """The colour scale of `heat`."""
    stops = ", ".join(f"rgb{tuple(int(v) for v in c)}" for c in heat(np.linspace(0, 1, 9)[None])[0])
    return (
        f'<p class="legend"><span>{escape(low)}</span><span class="bar" style="background:'
        f'linear-gradient(90deg, {stops})"></span><span>{escape(high)}</span></p>'
    )
