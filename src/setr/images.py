"""The only place that opens and encodes image files.

`read_image` returns uint8 RGB (H, W, 3); masks have their own rules (`masks.py`). Files are
recognised by content, not by file ending. EXIF rotation is applied, so arrays are what a viewer
shows. Every failure is a `SetrError` with the file and the reason; truncated files are errors and
never filled with grey.

Pillow reads headers and all unusual files; ordinary 8-bit PNG and JPEG files are decoded by
kornia-rs or OpenCV, which are faster and give the same values. If these fail, Pillow decodes the
file or gives the reason.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from setr.errors import SetrError, first_line
from setr.reading.decode import check_png_rows, check_scans, decode_fast, orientation
from setr.reading.files import printable

MAX_PIXELS = 150_000_000
"""Default limit in pixels, checked in the header against decompression bombs."""

SMALLER = (
    "raise --max-pixels to predict it, or cut it into tiles to train on (`setr init-data DIR "
    "--tile 1024`)"
)
"""What to do about larger images; only prediction and the server have the option."""

NEVER_OPENED = frozenset(
    {"EPS", "WMF", "IPTC"}  # start another program (Ghostscript), or may hold a file that does
    | {"ICO", "CUR", "ICNS"}  # are decoded before their size is known
    | {"BLP", "DDS", "FITS", "FTEX", "MSP", "QOI", "XPM"}  # by Python, pixel by pixel
)
"""Formats of Pillow that a file by a stranger can use to cost much."""

_FOREIGN = (
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"mif1", b"msf1")),
    (4, b"ftypavif", "AVIF (which Pillow reads from version 11.3 on)"),
    *((0, mark, "JPEG XL") for mark in (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    (0, b"%PDF", "PDF"),
)
"""Place and first bytes of formats that Pillow lacks, and their names."""

ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `opened` checks the size
_PILLOW_LIMIT = threading.Lock()


class ImageTooLargeError(SetrError):
    """An image with more pixels than allowed, according to its header."""


class UnknownPixelsError(SetrError):
    """A TIFF file with a pixel format that Pillow does not support."""


Source = str | os.PathLike | bytes


class Named(bytes):
    """The bytes of a file, with a name for error messages."""

    name: str

    def __new__(cls, data: bytes, name: str) -> Named:
        """Bytes with a name."""
        named = super().__new__(cls, data)
        named.name = name
        return named


def bounds(window: slice | tuple[slice, slice], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, stop) of the rows and of the columns of an index."""
    parts = window if isinstance(window, tuple) else (window, slice(None))
    return [part.indices(size)[:2] for part, size in zip(parts, shape, strict=False)]


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
            f"{name}: {width}x{height} pixels; the limit is {max_pixels:,} (max_pixels)"
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
        array: pixels.
        palette: (K, 3) uint8 colours, to write an 8-bit (H, W) array as a palette PNG.
    """
    return encode_picture(array, "PNG", palette=palette)


def encode_picture(
    array: np.ndarray, form: str, *, palette: np.ndarray | None = None, **options: Any
) -> bytes:
    """As `encode_png`, in any format of Pillow.

    Args:
        array: pixels.
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


def source_name(source: Source) -> str:
    """The name of a file in error messages."""
    if isinstance(source, bytes):
        return source.name if isinstance(source, Named) else "image data"
    return os.fsdecode(source)


class opened:  # noqa: N801  used as a function in `with`
    """Open with Pillow, check the pixel limit, and turn every failure into a `SetrError`."""

    def __init__(self, source: Source, max_pixels: int, name: str | None = None) -> None:
        self.source, self.max_pixels = source, max_pixels
        self.name = source_name(source) if name is None else name
        self.image: Any = None

    def __enter__(self) -> Any:
        name = self.name
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        _raise_pillow_limit(self.max_pixels)
        try:
            self.image = Image.open(file, formats=_formats())
        except Image.DecompressionBombError:
            raise ImageTooLargeError(
                f"{name}: more than {self.max_pixels:,} pixels; {SMALLER}"
            ) from None
        except Exception as error:
            raise unreadable(name, error, self.source) from None
        for what, (width, height) in (("", self.image.size), ("a tile of ", _tile(self.image))):
            if width * height > self.max_pixels:
                self.image.close()
                raise ImageTooLargeError(
                    f"{name}: {what}{width}x{height} is {width * height:,} pixels, above the limit "
                    f"of {self.max_pixels:,}; {SMALLER}"
                )
        return self.image

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.image.close()
        if isinstance(error, Exception) and not isinstance(error, (SetrError, MemoryError)):
            raise unreadable(self.name, error, self.source) from None


def _tile(image: Any) -> tuple[float, float]:
    """Width and height of a TIFF's tiles, which are decoded whole; 0 of other files."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, 0) for tag in (322, 323))
    whole = isinstance(width, int | float) and isinstance(height, int | float)
    return (width, height) if whole else (0, 0)


def _formats() -> list[str]:
    """The formats that Pillow may recognise, with those of the user's own plugins."""
    Image.init()
    return [name for name in Image.ID if name not in NEVER_OPENED]


def _raise_pillow_limit(pixels: int) -> None:
    """Raise Pillow's own limit, which refuses images of twice its size, to at least `pixels`.

    It is a global of the process and other threads may open files meanwhile, so it is only raised.
    It is never removed, since Pillow also checks what it decodes while it opens a file.
    """
    if pixels > MAX_PIXELS:
        with _PILLOW_LIMIT:
            if Image.MAX_IMAGE_PIXELS is not None:
                Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, pixels)


def unreadable(name: str, error: Exception, source: Source) -> SetrError:
    """An error that says in one line why a file could not be read."""
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
        if _head(source)[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return UnknownPixelsError(
                f"{name}: a TIFF file that is not 8-bit RGB; choose its bands: a data set in "
                "data.yaml, as bands: [1, 2, 3, 4], `setr predict` with --bands 1,2,3"
            )
        for place, mark, kind in _FOREIGN:
            if _head(source)[place:].startswith(mark):
                return SetrError(f"{name}: {kind} files are not read; save it as JPEG or PNG")
        for kind in NEVER_OPENED:
            _, accept = Image.OPEN.get(kind, (None, None))
            if accept and accept(_head(source)):
                return SetrError(f"{name}: {kind} files are not read; save it as PNG")
        return SetrError(f"{name}: not an image in a known format")
    return SetrError(f"{name}: broken image file ({first_line(error)})")


def _head(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source[:16]
    with open(source, "rb") as file:
        return file.read(16)


def note_pages(image: Any, name: str) -> None:
    """Warn if an open file is a stack; smaller copies of a TIFF image (overviews) are none."""
    if image.format not in ("GIF", "WEBP", "PNG", "TIFF") or not getattr(image, "is_animated", 0):
        return
    if image.format == "TIFF":
        image.seek(1)
        kind = int(image.tag_v2.get(254, 0))
        image.seek(0)
        if kind & 5:  # a smaller copy (1), or what is transparent (4)
            return
    note_first(name)


@lru_cache(maxsize=10_000)
def note_first(name: str) -> None:
    """Warn once per file (logger `setr`) that only its first frame or page is used."""
    text = f"{name}: has several frames or pages; the first is used"
    logging.getLogger("setr").warning("setr: %s", " ".join(printable(text).split()))


def _size(path: str | os.PathLike) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1


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
