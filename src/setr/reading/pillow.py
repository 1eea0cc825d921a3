"""Opens image files with Pillow: which ones, up to what size, and what is said of the others.

Files are recognised by content, not by file ending. Their size is checked in the header, before
anything is decoded. Every failure is a `SetrError` in one line, with the file and the reason.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from setr.errors import SetrError, first_line
from setr.reading.files import printable
from setr.reading.heif import INSTALL, heif_package, is_heif, open_heif

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


def source_name(source: Source) -> str:
    """The name of a file in error messages."""
    if isinstance(source, bytes):
        return source.name if isinstance(source, Named) else "image data"
    return os.fsdecode(source)


def file_bytes(source: Source) -> bytes:
    """The bytes of a file; raises as `require_stored`."""
    if isinstance(source, bytes):
        return source
    require_stored(source)
    return Path(os.fsdecode(source)).read_bytes()


def require_stored(path: str | os.PathLike) -> None:
    """Refuse what may not end or never begin, and can be read only once.

    Raises:
        OSError: no such file, or a pipe, device or folder, also by a link.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is no file")


def first_bytes(source: Source, count: int) -> bytes:
    """The first bytes of a file, at most `count`; raises as `require_stored`."""
    if isinstance(source, bytes):
        return source[:count]
    require_stored(source)
    with open(source, "rb") as file:
        return file.read(count)


@contextlib.contextmanager
def opened(source: Source, max_pixels: int, name: str | None = None) -> Iterator[Any]:
    """Open with Pillow, check the pixel limit, and turn every failure into a `SetrError`."""
    name = source_name(source) if name is None else name
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    _raise_pillow_limit(max_pixels)
    try:
        image = _open(file, source)
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"{name}: more than {max_pixels:,} pixels; {SMALLER}") from None
    except Exception as error:
        raise unreadable(name, error, source) from None
    try:
        require_pixels(name, image.size, max_pixels)
        require_pixels(name, _tile(image), max_pixels, what="a tile of ")
        yield image
    except (SetrError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(name, error, source) from None
    finally:
        image.close()


def require_pixels(name: str, size: tuple[float, float], max_pixels: int, what: str = "") -> None:
    """Refuse an image, or `what` else of it has this width and height, with more pixels.

    Raises:
        ImageTooLargeError: names the limit, and what to do.
    """
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name}: {what}{width}x{height} is {width * height:,} pixels, above the limit of "
            f"{max_pixels:,}; {SMALLER}"
        )


def _open(file: Any, source: Source) -> Any:
    """An image file, or an open one, as a Pillow image."""
    if not isinstance(source, bytes):
        require_stored(source)
    try:
        return Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError:
        if heif_package() is None or not is_heif(first_bytes(source, 12)):
            raise
    return open_heif(io.BytesIO(source) if isinstance(source, bytes) else source)


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
    if not isinstance(source, bytes) and os.path.isdir(source):
        return SetrError(f"{name}: is a folder, not an image file")
    if not isinstance(source, bytes) and os.path.exists(source) and not os.path.isfile(source):
        return SetrError(f"{name}: is a pipe or device; save the image to a file")
    if not (len(source) if isinstance(source, bytes) else _size(source)):
        return SetrError(f"{name}: the file is empty (0 bytes)")
    if isinstance(error, Image.UnidentifiedImageError):
        start = first_bytes(source, 16)
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return UnknownPixelsError(
                f"{name}: a TIFF file that is not 8-bit RGB; choose its bands: a data set in "
                "data.yaml, as bands: [1, 2, 3, 4], `setr predict` with --bands 1,2,3"
            )
        if is_heif(start):
            return SetrError(f"{name}: HEIC files need {INSTALL}; or save it as JPEG or PNG")
        for place, mark, kind in _FOREIGN:
            if start[place:].startswith(mark):
                return SetrError(f"{name}: {kind} files are not read; save it as JPEG or PNG")
        for kind in NEVER_OPENED:
            _, accept = Image.OPEN.get(kind, (None, None))
            if accept and accept(start):
                return SetrError(f"{name}: {kind} files are not read; save it as PNG")
        return SetrError(f"{name}: not an image in a known format")
    return SetrError(f"{name}: broken image file ({first_line(error)})")


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
