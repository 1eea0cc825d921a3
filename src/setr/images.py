"""The only place that opens and encodes image files.

`read_image` gives uint8 RGB (H, W, 3); masks have rules of their own (`masks.py`). Files are
recognised by content, not by suffix. One rule for orientation: EXIF rotation is applied, so arrays
are what a viewer shows. Every failure is a `SetrError` naming the file and the reason; a truncated
file is an error, never half grey.

Pillow reads the header and everything unusual; the pixels of ordinary 8-bit PNG and JPEG files come
from kornia-rs or OpenCV, which are faster and give the same values. Where these
refuse, Pillow tries and names the reason.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from setr.errors import SetrError, first_line
from setr.reading.decode import (
    can_stop_early,
    check_png_rows,
    decode_fast,
    decode_png,
    first_rows,
    orientation,
)
from setr.reading.files import printable

MAX_PIXELS = 150_000_000
"""Default limit in pixels, checked from the header before decoding (a decompression bomb guard)."""

SMALLER = "raise --max-pixels to read it, or cut it into tiles, as training and testing need it"
"""What to do about a larger one; only prediction and the server have the option."""

ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `opened` holds files to a limit
_PILLOW = threading.Lock()


class ImageTooLargeError(SetrError):
    """An image above a limit of pixels, known from its header."""


class UnknownPixelsError(SetrError):
    """A TIFF file of pixels that Pillow does not know."""


Source = str | os.PathLike | bytes


class Named(bytes):
    """The bytes of a file with the name that errors call it by."""

    name: str

    def __new__(cls, data: bytes, name: str) -> Named:
        """The bytes `data`, called `name`."""
        named = super().__new__(cls, data)
        named.name = name
        return named


class Rows:
    """An image whose rows are decoded when asked for: `rows[a:b, c:d]` is uint8 RGB.

    A crop rarely reaches the lower edge, and PNG decoding is most of a data path's time, so a
    plain PNG file is decoded down to the rows wanted. Other files are decoded whole.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        SetrError: as `read_image`, here or when rows are asked for.
    """

    def __init__(self, source: Source) -> None:
        self.name = source_name(source)
        if not isinstance(source, bytes):
            try:
                source = Path(os.fsdecode(source)).read_bytes()
            except OSError as error:
                raise unreadable(self.name, error, source) from None
        self.source = source
        with opened(source, MAX_PIXELS, self.name) as image:
            early = can_stop_early(image, source)
            self.shape: tuple[int, ...] = (image.size[1], image.size[0], 3)
        self.pixels = None if early else read_image(Named(source, self.name))
        if self.pixels is not None:
            self.shape = self.pixels.shape

    def __getitem__(self, place: slice | tuple[slice, slice]) -> np.ndarray:
        """The pixels of rows, or of rows and columns, without steps."""
        if self.pixels is not None:
            return self.pixels[place]
        (top, bottom), (left, right) = bounds(place, self.shape)
        data = first_rows(self.source, bottom)
        with opened(data, MAX_PIXELS, self.name) as image:
            pixels = decode_png(image, data)
            if pixels is not None:
                return pixels[top:, left:right]
            check_png_rows(image, data)
            return np.asarray(image.crop((left, top, right, bottom)))  # Pillow hands out copies


def bounds(place: slice | tuple[slice, slice], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and last place, exclusive, of the rows and of the columns that an index names."""
    parts = place if isinstance(place, tuple) else (place, slice(None))
    return [part.indices(size)[:2] for part, size in zip(parts, shape, strict=False)]


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to uint8 RGB (H, W, 3).

    Grey is replicated, palettes are applied, 16-bit is scaled by 1/257, alpha is dropped, CMYK is
    converted, of several frames the first is used.

    Args:
        source: a path, or the bytes of a file.
        max_pixels: larger images are refused from the header.

    Raises:
        SetrError: missing, unreadable, truncated, not an image, of 32-bit pixels, whose range no
            file tells, or above `max_pixels`.
    """
    with opened(source, max_pixels) as image:
        _require_scale(image, source_name(source))
        if image.format in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False):
            note_first(source_name(source))
        pixels = decode_fast(image, source) if image.mode == "RGB" else None
        if pixels is None:
            check_png_rows(image, source)
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
        return pixels


def from_pillow(image: Any, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A Pillow image as uint8 RGB (H, W, 3), by the rules of `read_image`.

    Raises:
        SetrError: truncated, broken, empty, of 32-bit pixels, or above `max_pixels`.
    """
    name = getattr(image, "filename", "") or "Pillow image"
    _require_scale(image, name)
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise SetrError(
            f"{name}: {width}x{height} pixels; the limit is {max_pixels:,} (max_pixels)"
        )
    try:
        return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except Exception as error:  # of a broken file Pillow raises many kinds
        raise SetrError(f"{name}: broken image file ({first_line(error)})") from None


def check_whole(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], bool]:
    """Header and end of an image file, without decoding.

    Returns:
        (height, width) as displayed, and whether EXIF rotates the stored pixels.

    Raises:
        SetrError: missing, unreadable, not an image, too large, or (PNG and JPEG) cut off.
    """
    with opened(source, max_pixels) as image:
        _require_scale(image, source_name(source))
        width, height = image.size
        turn = orientation(image)
        marker = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(image.format)
        if marker is not None and marker not in _tail(source):
            image.load()  # cut off, or whole with much data behind it
    stored = turn >= 5 and image.format != "TIFF"  # of which Pillow gives the size as displayed
    return ((width, height) if stored else (height, width)), turn != 1


def _tail(source: Source, count: int = 4096) -> bytes:
    if isinstance(source, bytes):
        return source[-count:]
    with open(source, "rb") as file:
        file.seek(-min(count, os.path.getsize(source)), os.SEEK_END)
        return file.read()


def encode_png(array: np.ndarray, *, palette: np.ndarray | None = None) -> bytes:
    """The bytes of a PNG file of uint8/uint16 (H, W) or uint8 RGB (H, W, 3).

    Args:
        array: pixels.
        palette: (K, 3) uint8 colours, making an 8-bit (H, W) array a palette PNG.
    """
    return encode_picture(array, "PNG", palette=palette)


def encode_picture(
    array: np.ndarray, form: str, *, palette: np.ndarray | None = None, **options: Any
) -> bytes:
    """As `encode_png`, in another of Pillow's formats.

    Args:
        array: pixels.
        form: Pillow's name of the format.
        palette: as there.
        options: of that format, for example `quality`.

    Raises:
        SetrError: larger than the format can be.
    """
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=form, **options)
    except (OSError, ValueError) as error:
        raise SetrError(f"{form}: cannot hold {image.width}x{image.height} ({error})") from None
    return buffer.getvalue()


def source_name(source: Source) -> str:
    """What errors call a file by."""
    if isinstance(source, bytes):
        return source.name if isinstance(source, Named) else "image data"
    return os.fsdecode(source)


class opened:  # noqa: N801  used as a function in `with`
    """Open with PIL, check the pixel limit, and turn every failure into one line."""

    def __init__(self, source: Source, max_pixels: int, name: str | None = None) -> None:
        self.source, self.max_pixels = source, max_pixels
        self.name = source_name(source) if name is None else name
        self.image: Any = None

    def __enter__(self) -> Any:
        name = self.name
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        _let_pillow_open(self.max_pixels)
        try:
            self.image = Image.open(file)
        except Image.DecompressionBombError:
            raise ImageTooLargeError(
                f"{name}: more than {self.max_pixels:,} pixels; {SMALLER}"
            ) from None
        except Exception as error:
            raise unreadable(name, error, self.source) from None
        width, height = self.image.size
        if width * height > self.max_pixels:
            self.image.close()
            raise ImageTooLargeError(
                f"{name}: {width}x{height} is {width * height:,} pixels, above the limit of "
                f"{self.max_pixels:,}; {SMALLER}"
            )
        return self.image

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.image.close()
        if isinstance(error, Exception) and not isinstance(error, (SetrError, MemoryError)):
            raise unreadable(self.name, error, self.source) from None


def _let_pillow_open(pixels: int) -> None:
    """Raise Pillow's own limit, at twice of which it refuses files, where ours was raised.

    It belongs to the whole process and other threads are opening files meanwhile, so it only rises.
    It is never lifted: it is the only guard of pictures inside a file (ICO) that its header hides.
    """
    if pixels > MAX_PIXELS:
        with _PILLOW:
            if Image.MAX_IMAGE_PIXELS is not None:
                Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, pixels)


def unreadable(name: str, error: Exception, source: Source) -> SetrError:
    """Why a file could not be read, in one line."""
    if isinstance(error, FileNotFoundError):
        link = not isinstance(source, bytes) and os.path.islink(source)
        return SetrError(f"{name}: " + ("a link that leads nowhere" if link else "no such file"))
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return SetrError(f"{name}: a link that leads to itself")
    if isinstance(error, PermissionError):
        return SetrError(f"{name}: permission denied")
    if isinstance(error, IsADirectoryError):
        return SetrError(f"{name}: is a folder, not an image file")
    if not (len(source) if isinstance(source, bytes) else _size(source)):
        return SetrError(f"{name}: the file is empty (0 bytes)")
    if isinstance(error, Image.UnidentifiedImageError):
        if _starts_as_tiff(source):
            return UnknownPixelsError(
                f"{name}: a TIFF file of other pixels than 8-bit RGB; a data set names its bands "
                "in data.yaml, as bands: [1, 2, 3, 4], `setr predict` takes --bands 1,2,3"
            )
        return SetrError(f"{name}: not an image in a known format")
    return SetrError(f"{name}: broken image file ({first_line(error)})")


def _starts_as_tiff(source: Source) -> bool:
    head = source[:4] if isinstance(source, bytes) else Path(os.fsdecode(source)).read_bytes()[:4]
    return head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@lru_cache(maxsize=10_000)
def note_first(name: str) -> None:
    """Say of a file on stderr (logger `setr`), once however often it is read, what is left out."""
    text = f"{name}: has several frames or pages; the first is used"
    logging.getLogger("setr").warning("setr: %s", " ".join(printable(text).split()))


def _size(path: str | os.PathLike) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1


def _require_scale(image: Any, name: str) -> None:
    """Refuse pixels whose black and white nobody knows; formats of 16 bits open as "I", too."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "float" if image.mode == "F" else "integer"
        raise SetrError(
            f"{name}: 32-bit {kind} pixels, whose range is not known; save them as 8 or 16 bits "
            "(`setr predict --value-range` maps those of TIFF files)"
        )


def _to_rgb(image: Any) -> Any:
    if image.mode.startswith("I"):  # 16 bits; convert("RGB") would clip to white
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "RGBA":
        return Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., :3]))
    return image.convert("RGB")
