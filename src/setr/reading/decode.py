"""Fast decoding of ordinary PNG and JPEG files, and MATLAB label maps.

kornia-rs and OpenCV return the same values as Pillow in less time. Files they would read
differently (rotated, transparent, 16-bit, truncated) are left to Pillow.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

import cv2
import numpy as np

from setr._extras import import_extra
from setr.errors import SetrError, first_line
from setr.reading.pillow import Source, file_bytes

try:
    from kornia_rs.io import decode_image_png_u8 as _decode_png
except ImportError:  # fall back to Pillow, at less than half the speed
    _decode_png = None

MAX_SCANS = 100
"""Scans of a progressive JPEG, as in libtiff and GDAL; each takes time, but only a dozen bytes."""
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])")  # one before a segment


def orientation(image: Any) -> int:
    """EXIF orientation of an open Pillow image, 1 (upright) to 8, read from the header only."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode all pixels to search behind them
    return int(image.getexif().get(0x0112, 1))


def check_scans(image: Any, source: Source) -> None:
    """Refuse a progressive JPEG that would take hours to decode.

    Raises:
        OSError: more scans than `MAX_SCANS`.
    """
    if image.format not in ("JPEG", "MPO") or "progressive" not in image.info:
        return
    data = file_bytes(source)
    scans, place = 0, 2
    while (found := _MARKER.search(data, place)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        if scans > MAX_SCANS:
            raise OSError(f"it has more than {MAX_SCANS} scans; save it again as a plain JPEG")
        length = data[found.end() : found.end() + 2]
        place = found.end() + max(int.from_bytes(length, "big"), 2)


def can_stop_early(image: Any, data: bytes) -> bool:
    """Whether only the upper rows of an open Pillow image can be decoded: plain 8-bit RGB PNG."""
    if image.format != "PNG" or image.mode != "RGB" or "transparency" in image.info:
        return False
    if getattr(image, "is_animated", False):
        return False  # frames must have the height given in the header
    depth, interlaced = data[24], data[28]
    return depth == 8 and not interlaced and b"IEND" in data[-64:] and not _has_exif(image, data)


def _has_exif(image: Any, data: bytes) -> bool:
    """Whether an open PNG file has EXIF data before its pixels (read by Pillow) or after them."""
    return "exif" in image.info or b"eXIf" in data[-4096:]


def first_rows(data: bytes, count: int) -> bytes:
    """A copy of a PNG file whose header gives a height of `count`, so that decoders stop there."""
    header = data[12:20] + struct.pack(">I", count) + data[24:29]
    crc = struct.pack(">I", zlib.crc32(header))
    return b"".join((data[:12], header, crc, memoryview(data)[33:]))


def decode_png(image: Any, data: bytes) -> np.ndarray | None:
    """Pixels of an open 8-bit PNG (RGB or one channel) by kornia-rs; None to use Pillow."""
    if _decode_png is None:
        return None
    mode = "rgb" if image.mode == "RGB" else "mono"
    try:
        pixels = np.asarray(_decode_png(data, image.size[::-1], mode))
    except Exception:  # of its own type; Pillow will report the reason
        return None
    return pixels[..., 0] if mode == "mono" else pixels


def check_png_rows(image: Any, source: Source) -> None:
    """Refuse a truncated PNG file, whose missing part Pillow leaves black.

    Raises:
        OSError: less data than the header declares.
    """
    if image.format != "PNG" or getattr(image, "is_animated", False):
        return
    data = file_bytes(source)
    interlaced = data[28] == 1
    image.load()
    width, height = image.size
    if not interlaced and image.crop((0, height - 1, width, height)).getbbox():
        return  # missing rows would be zero
    missing = _png_bytes(width, height, depth=data[24], colour=data[25], interlaced=interlaced)
    inflate, offset = zlib.decompressobj(), 8
    while missing > 0 and offset + 12 <= len(data):
        (length,) = struct.unpack(">I", data[offset : offset + 4])
        if data[offset + 4 : offset + 8] == b"IDAT":
            chunk = data[offset + 8 : offset + 8 + length]
            while chunk and missing > 0:
                missing -= len(inflate.decompress(chunk, 1 << 20))
                chunk = inflate.unconsumed_tail
        offset += 12 + length
    if missing > 0:
        raise OSError(f"{missing:,} bytes less than its header promises")


def _png_bytes(width: int, height: int, *, depth: int, colour: int, interlaced: bool) -> int:
    """Inflated size of a PNG's rows, each with its filter byte (PNG specification, section 7)."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4),
                  (1, 0, 2, 2), (0, 1, 1, 2)]  # fmt: skip
    total = 0
    for x, y, dx, dy in passes:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def decode_fast(image: Any, source: Source) -> np.ndarray | None:
    """Pixels of an open 8-bit PNG (RGB, grey, palette indices) or RGB JPEG; None to use Pillow."""
    if image.format not in ("PNG", "JPEG") or image.info.get("transparency") is not None:
        return None
    data = file_bytes(source)
    if image.format == "JPEG":
        # OpenCV fills the missing part of a truncated file with grey, so only complete files
        if not data.rstrip(b"\0").endswith(b"\xff\xd9") or orientation(image) != 1:
            return None
    elif data[24] != 8 or b"IEND" not in data[-64:] or _has_exif(image, data):
        return None  # byte 24 is the bit depth
    elif _decode_png is not None:
        return decode_png(image, data)
    elif image.mode != "RGB":
        return None  # Pillow is as fast; OpenCV would convert palette indices to colours
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def read_mat(path: str) -> np.ndarray:
    """Variable `LabelMap` (H, W) uint16 of a MATLAB file, as in Pascal Context: 0 is unlabelled.

    Raises:
        SetrError: broken, or without such a variable.
        OSError: cannot be opened.
    """
    scipy_io = import_extra("scipy.io", "mat", f"{path}: reading MATLAB files")
    try:
        ids = np.asarray(scipy_io.loadmat(path, variable_names=["LabelMap"])["LabelMap"])
    except OSError:
        raise
    except KeyError:
        raise SetrError(f"{path}: has no variable 'LabelMap'") from None
    except Exception as error:  # scipy raises many types on corrupt files
        raise SetrError(f"{path}: broken MATLAB file ({first_line(error)})") from None
    if ids.ndim != 2 or ids.min(initial=0) < 0 or ids.max(initial=0) > 65535:
        raise SetrError(f"{path}: LabelMap must be (H, W) ids from 0 to 65535")
    return ids.astype(np.uint16)
