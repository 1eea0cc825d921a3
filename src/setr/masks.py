"""Label masks -> ids (H, W), or colours where a data set has a colour map. Nothing is guessed."""

from __future__ import annotations

import os

import numpy as np

from setr.decode import check_png_rows, decode_fast, read_mat
from setr.errors import SetrError
from setr.images import MAX_PIXELS, Source, opened, source_name, unreadable

LOSSY_FORMATS = frozenset({"JPEG", "MPO"})


def read_mask(source: Source, *, rgb: bool = False, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a label mask to ids (H, W), uint8 or uint16; palette images give their indices.

    A MATLAB file gives its variable `LabelMap` (Pascal Context; extra `mat`).

    Args:
        source: a path, or the bytes of a file.
        rgb: the mask holds colours: give (H, W, 3) uint8.
        max_pixels: larger masks are refused from the header.

    Raises:
        SetrError: as `read_image`, and for lossy formats, colour masks unless `rgb`, and masks of
            ids if `rgb`.
    """
    if not isinstance(source, bytes) and os.fspath(source).endswith(".mat"):
        return _mat_mask(os.fspath(source))
    name = source_name(source)
    with opened(source, max_pixels) as image:
        if image.format in LOSSY_FORMATS:
            raise SetrError(
                f"{name}: a mask stored as {image.format} has blurred ids; save masks as PNG"
            )
        if rgb:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise SetrError(
                    f"{name}: holds one id per pixel but the data set has a colour_map; "
                    "remove colour_map, or save the mask in RGB"
                )
            pixels = decode_fast(image, source) if image.mode == "RGB" else None
            if pixels is None:
                check_png_rows(image, source)
            return np.asarray(image.convert("RGB")) if pixels is None else pixels
        if image.mode in ("P", "L"):
            pixels = decode_fast(image, source)
            if pixels is None:
                check_png_rows(image, source)
            return np.asarray(image) if pixels is None else pixels
        check_png_rows(image, source)
        image.load()
        if image.mode == "1":
            return np.asarray(image, dtype=np.uint8)
        if image.mode.startswith("I"):
            ids = np.asarray(image)
            if ids.min() < 0 or ids.max() > 65535:
                raise SetrError(f"{name}: ids {ids.min()}..{ids.max()} exceed 0..65535")
            return ids.astype(np.uint16)
        channels = np.asarray(image.convert("RGB"))
        if image.mode == "RGB" and (channels == channels[..., :1]).all():
            return np.ascontiguousarray(channels[..., 0])  # R=G=B=id, as some tools export
        raise SetrError(
            f"{name}: a {image.mode} colour mask; save one id per pixel (8-bit grey or "
            "palette PNG), or give a colour_map in data.yaml (`setr init-data DIR` writes one)"
        )


def _mat_mask(path: str) -> np.ndarray:
    try:
        return read_mat(path)
    except OSError as error:
        raise unreadable(path, error, path) from None
