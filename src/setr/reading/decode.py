"""Fast pixels of ordinary PNG and JPEG files, and MATLAB label maps; used by `images.py` alone.

kornia-rs and OpenCV give the same values as Pillow, in less time. Neither is
asked about files it would read differently: rotated, transparent, 16-bit, cut off.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from setr._extras import import_extra
from setr.errors import SetrError, first_line

try:
    from kornia_rs.io import decode_image_png_u8 as _decode_png
except ImportError:  # a young library: without it Pillow decodes, at less than half the speed
    _decode_png = None


def orientation(image: Any) -> int:
    """EXIF orientation of an open Pillow image, 1 (upright) to 8, from the header alone."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the pixels to look behind them
    return int(image.getexif().get(0x0112, 1))


def can_stop_early(image: Any, data: bytes) -> bool:
    """Whether the upper rows of an open Pillow image can be decoded alone: plain 8-bit RGB PNG."""
    if image.format != "PNG" or image.mode != "RGB" or "transparency" in image.info:
        return False
    if getattr(image, "is_animated", False):
        return False  # its frames are as high as the header says
    depth, interlaced = data[24], data[28]
    return depth == 8 and not interlaced and b"IEND" in data[-64:] and not _has_exif(image, data)


def _has_exif(image: Any, data: bytes) -> bool:
    """Whether an open PNG file has EXIF before its pixels, which Pillow has read, or behind."""
    return "exif" in image.info or b"eXIf" in data[-4096:]


def first_rows(data: bytes, count: int) -> bytes:
    """A PNG file that claims to be `count` rows high, so that a decoder stops there."""
    header = data[12:20] + struct.pack(">I", count) + data[24:29]
    check = struct.pack(">I", zlib.crc32(header))
    return b"".join((data[:12], header, check, memoryview(data)[33:]))


def decode_png(image: Any, data: bytes) -> np.ndarray | None:
    """Pixels of an open 8-bit PNG (RGB or one channel) by kornia-rs; None to use Pillow."""
    if _decode_png is None:
        return None
    mode = "rgb" if image.mode == "RGB" else "mono"
    try:
        pixels = np.asarray(_decode_png(data, image.size[::-1], mode))
    except Exception:  # its own exception type; Pillow then names the reason
        return None
    return pixels[..., 0] if mode == "mono" else pixels


def check_png_rows(image: Any, source: str | os.PathLike | bytes) -> None:
    """Refuse a PNG file with less data than its header promises, whose rest Pillow leaves black.

    Raises:
        OSError: the data ends early.
    """
    if image.format != "PNG" or getattr(image, "is_animated", False):
        return
    data = source if isinstance(source, bytes) else Path(os.fsdecode(source)).read_bytes()
    interlaced = data[28] == 1
    image.load()
    width, height = image.size
    if not interlaced and image.crop((0, height - 1, width, height)).getbbox():
        return  # what is missing would be zero
    missing = _png_bytes(width, height, depth=data[24], colour=data[25], interlaced=interlaced)
    inflate, at = zlib.decompressobj(), 8
    while missing > 0 and at + 12 <= len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        if kind == b"IDAT":
            feed = data[at + 8 : at + 8 + length]
            while feed and missing > 0:
                missing -= len(inflate.decompress(feed, 1 << 20))
                feed = inflate.unconsumed_tail
        at += 12 + length
    if missing > 0:
        raise OSError(f"{missing:,} bytes less than its header promises")


def _png_bytes(width: int, height: int, *, depth: int, colour: int, interlaced: bool) -> int:
    """Inflated size of a PNG's rows, each with its filter byte (PNG specification, section 7)."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    steps = [(0, 0, 1, 1)]
    if interlaced:
        steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                 (0, 1, 1, 2)]  # fmt: skip
    total = 0
    for x, y, dx, dy in steps:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def decode_fast(image: Any, source: str | os.PathLike | bytes) -> np.ndarray | None:
    """Pixels of an open 8-bit PNG (RGB, grey, palette indices) or RGB JPEG; None to use Pillow."""
    if image.format not in ("PNG", "JPEG") or image.info.get("transparency") is not None:
        return None
    data = source if isinstance(source, bytes) else Path(os.fsdecode(source)).read_bytes()
    if image.format == "JPEG":
        # OpenCV fills the missing part of a truncated file with grey: take whole files only
        if not data.rstrip(b"\0").endswith(b"\xff\xd9") or orientation(image) != 1:
            return None
    elif data[24] != 8 or b"IEND" not in data[-64:] or _has_exif(image, data):
        return None  # byte 24 is the bit depth
    elif _decode_png is not None:
        return decode_png(image, data)
    elif image.mode != "RGB":
        return None  # as fast in Pillow; OpenCV would turn palette indices into colours
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def read_mat(path: str) -> np.ndarray:
    """Pascal Context's released labels: `LabelMap`, uint16 ids 1 .. 459, 0 unlabelled."""
    scipy_io = import_extra("scipy.io", "mat", f"{path}: reading MATLAB files")
    try:
        ids = np.asarray(scipy_io.loadmat(path, variable_names=["LabelMap"])["LabelMap"])
    except OSError:
        raise
    except KeyError:
        raise SetrError(f"{path}: has no variable 'LabelMap'") from None
    except Exception as error:  # scipy raises many kinds on broken files
        raise SetrError(f"{path}: broken MATLAB file ({first_line(error)})") from None
    if ids.ndim != 2 or ids.min(initial=0) < 0 or ids.max(initial=0) > 65535:
        raise SetrError(f"{path}: LabelMap must be (H, W) ids from 0 to 65535")
    return ids.astype(np.uint16)
