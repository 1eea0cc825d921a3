"""What a result can be saved as: kinds, the endings of their files, and the formats of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setr.errors import SetrError

KINDS = {
    "mask": ".png",
    "ids": "_ids.png",
    "color": "_color.png",
    "overlay": "_overlay.png",
    "confidence": "_confidence.png",
    "scores": "_scores.npz",
    "share": "_share.json",
    "geojson": ".geojson",
    "gpkg": ".gpkg",
    "coco": "_coco.json",
    "coco_rle": "_coco_rle.json",
    "labelme": ".json",
}
"""What can be saved, with the ending of the file name: `mask` is a palette PNG whose indices are
training ids, `ids` the same as plain grey, `color` and `overlay` are RGB, `confidence` is grey
(255 = certain), `scores` holds float16 probabilities (K, H, W) and the class names, `share` the
classes' shares, the others polygons."""
PICTURES = ("mask", "ids", "color", "overlay", "confidence")
"""Kinds that are pictures."""
RASTER_PICTURES = ("mask", "ids", "confidence")
"""Those that a .tif of a georeferenced image keeps on the map."""
POLYGON_KINDS = ("geojson", "gpkg", "coco", "coco_rle", "labelme")
"""Kinds with polygons."""
OPTIONS = {
    "overlay": ("opacity", "classes"),
    **dict.fromkeys(POLYGON_KINDS, ("tolerance", "min_pixels", "classes")),
}
"""Options of a kind; the others have none."""
OPACITY = 0.55
"""Of the class colours of an overlay, if none is given."""
PICTURE_FORMATS = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
}
"""Suffixes of pictures, with Pillow's names for them."""
LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
"""Those that keep every value."""


def checked_suffix(path: Path, kind: str) -> str:
    """The suffix in small letters, a picture's `.png` for none.

    Raises:
        SetrError: an unknown kind, or a suffix that is not one of its own.
    """
    if kind not in KINDS:
        raise unknown_kind(kind)
    suffix, is_exact = path.suffix.lower(), kind in ("mask", "ids")
    if kind in PICTURES:
        known = LOSSLESS if is_exact else tuple(PICTURE_FORMATS)
        suffix = suffix or ".png"
    else:
        known = (".geojson", ".json") if kind == "geojson" else (Path(f"x{KINDS[kind]}").suffix,)
    if suffix and suffix not in known:
        changed = is_exact and suffix in PICTURE_FORMATS
        loses = ", which would change its values" if changed else ""
        named = ("geojson", "gpkg", "scores", "share")
        other = next((k for k in named if KINDS[k].endswith(suffix)), None)
        own = "overlay" if changed else other
        hint = f"; or give another kind, such as '{own}'" if own else ""
        raise SetrError(
            f"{path}: kind '{kind}' is not written as {suffix}{loses}; "
            f"end the name in {', '.join(known)}{hint}"
        )
    return suffix


def options_of(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given options that a kind has."""
    return {name: given[name] for name in OPTIONS.get(kind, ()) if name in given}


def unknown_kind(kind: str) -> SetrError:
    """What is said of a kind that does not exist."""
    return SetrError(f"save kind '{kind}': choose from {', '.join(KINDS)}")
