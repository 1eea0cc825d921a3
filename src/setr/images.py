"""Decodes image files to RGB, and encodes them.

`read_image` returns uint8 RGB (H, W, 3); masks have their own rules (`masks.py`). EXIF rotation is
applied, so arrays are what a viewer shows. Every failure is a `SetrError` with the file and the
reason (`pillow.py`); truncated files are errors and never filled with grey.

Pillow reads headers and all unusual files; ordinary 8-bit PNG and JPEG files are decoded by
kornia-rs or OpenCV, which are faster and give the same values. If these fail, Pillow decodes the
file or gives the reason.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from setr.errors import SetrError, first_line
from setr.reading.decode import check_png_rows, check_scans, decode_fast, orientation
from setr.reading.pillow import MAX_PIXELS, Source, note_pages, opened, source_name


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to uint8 RGB (H, W, 3).

    Grey is replicated, palettes are applied, 16-bit values are scaled by 1/257, alpha is dropped,
    CMYK is converted, and only the first frame is used.

    Args:
        source: a path, or the bytes of a file.
        max_pixels: larger images are an error, before decoding.

    Raises:
        SetrError: missing, unreadable, truncated, not an image, above `max_pixels`, or with 32-bit
            pixels, whose range is unknown.
    """
    with opened(source, max_pixels) as image:
        _require_known_range(image, source_name(source))
        note_pages(image, source_name(source))
        check_scans(image, source)
        pixels = decode_fast(image, source) if image.mode == "RGB" else None
        if pixels is None:
            check_png_rows(image, source)
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
        return pixels


def from_pillow(image: Any, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Convert a Pillow image to uint8 RGB (H, W, 3), as `read_image` does.

    Raises:
        SetrError: truncated, broken, empty, with 32-bit pixels, or above `max_pixels`.
    """
    name = getattr(image, "filename", "") or "Pillow image"
    _require_known_range(image, name)
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise SetrError(
            f"{name}: {width}x{height} pixels; give at least one, and up to {max_pixels:,} "
            "(max_pixels)"
        )
    try:
        return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise SetrError(f"{name}: broken image file ({first_line(error)})") from None


def check_whole(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], bool]:
    """Check header and end of an image file, without decoding.

    Returns:
        (height, width) as displayed, and whether EXIF rotates the stored pixels.

    Raises:
        SetrError: missing, unreadable, not an image, too large, or (PNG and JPEG) truncated.
    """
    with opened(source, max_pixels) as image:
        _require_known_range(image, source_name(source))
        width, height = image.size
        turn = orientation(image)
        check_scans(image, source)
        marker = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(image.format)
        if marker is not None and marker not in _tail(source):
            image.load()  # truncated, or complete with other data behind it
    transposed = turn >= 5 and image.format != "TIFF"  # Pillow transposes sizes of TIFF itself
    return ((width, height) if transposed else (height, width)), turn != 1


def _tail(source: Source) -> bytes:
    """The last 4 kB of a file, where its end marker is."""
    count = 4096
    if isinstance(source, bytes):
        return source[-count:]
    with open(source, "rb") as file:
        file.seek(-min(count, os.path.getsize(source)), os.SEEK_END)
        return file.read()


def encode_png(array: np.ndarray, *, palette: np.ndarray | None = None) -> bytes:
    """Encode uint8/uint16 (H, W) or uint8 RGB (H, W, 3) as PNG.

    Args:
        palette: (K, 3) uint8 colours, to write an 8-bit (H, W) array as a palette PNG.
    """
    return encode_picture(array, "PNG", palette=palette)


def encode_picture(
    array: np.ndarray, form: str, *, palette: np.ndarray | None = None, **options: Any
) -> bytes:
    """As `encode_png`, in any format of Pillow.

    Args:
        form: Pillow's name of the format.
        palette: as in `encode_png`.
        options: options of that format, for example `quality`.

    Raises:
        SetrError: too large for the format.
    """
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=form, **options)
    except (OSError, ValueError) as error:
        raise SetrError(
            f"{form} cannot store {image.width}x{image.height} pixels ({error})"
        ) from None
    return buffer.getvalue()


def _require_known_range(image: Any, name: str) -> None:
    """Raise an error for 32-bit pixels; Pillow also opens 16-bit PNG and PPM files as "I"."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "float" if image.mode == "F" else "integer"
        raise SetrError(
            f"{name}: 32-bit {kind} pixels, whose range is unknown; save them as 8 or 16 bits "
            "(`setr predict --value-range` maps those of TIFF files)"
        )


def _to_rgb(image: Any) -> Any:
    if image.mode.startswith("I"):  # 16 bits, which convert("RGB") would clip
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "RGBA":
        return Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., :3]))
    return image.convert("RGB")
