"""Reading label masks: ids (H, W), or colours (H, W, 3) for data sets with a colour map."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np

from setr.colours import packed_colours
from setr.errors import SetrError, first_few
from setr.reading.decode import check_png_rows, decode_fast, read_mat
from setr.reading.pillow import (
    MAX_PIXELS,
    Source,
    UnknownPixelsError,
    first_bytes,
    note_pages,
    opened,
    require_stored,
    source_name,
    unreadable,
)

LOSSY_FORMATS = frozenset({"JPEG", "MPO", "AVIF", "HEIF"})
IN_ALPHA = (
    "of one value everywhere: what was drawn is only in the alpha channel, which is not read; "
    "export masks without transparency, over a background of another colour"
)
"""Message for masks that are `is_in_alpha`."""


class ColourMaskError(SetrError):
    """A mask with colours where ids are expected."""


class IdMaskError(SetrError):
    """A mask with ids where colours are expected."""


def is_mat(source: Source) -> TypeGuard[str | os.PathLike]:
    """Whether a mask is a MATLAB file, which only a path can be."""
    return not isinstance(source, bytes) and os.fsdecode(source).endswith(".mat")


def read_mask(source: Source, *, rgb: bool = False) -> np.ndarray:
    """Decode a label mask to ids (H, W), uint8 or uint16; palette images return their indices.

    A MATLAB file returns its variable `LabelMap` (Pascal Context; extra `mat`).

    Args:
        source: a path, or the bytes of a file.
        rgb: the mask contains colours; return them, (H, W, 3) uint8.

    Raises:
        SetrError: as `read_image`, and for lossy formats, colour masks unless `rgb`, and id masks
            if `rgb`.
    """
    if is_mat(source):
        return _mat_mask(os.fspath(source))
    name = source_name(source)
    try:
        with opened(source, MAX_PIXELS) as image:
            _require_kind(image, name, rgb=rgb)
            if image.format == "WEBP" and b"VP8 " in first_bytes(source, 4096):  # VP8L is lossless
                raise _lossy(name, "lossy WebP")
            note_pages(image, name)
            plain = image.mode == "RGB" if rgb else image.mode in ("P", "L")
            pixels = decode_fast(image, source) if plain else None
            if pixels is not None:
                return pixels
            check_png_rows(image, source)
            return _stored(image, name, rgb=rgb)
    except UnknownPixelsError:
        raise SetrError(
            f"{name}: a TIFF mask with pixels that are not ids, such as 64-bit numbers or several "
            "bands; save one id per pixel, as 8-bit or 16-bit grey"
        ) from None


def read_levels(source: Source) -> np.ndarray:
    """Grey levels (H, W) of a mask of two classes, uint8 or uint16, also of JPEG files.

    Colours and palettes become their brightness.

    Raises:
        SetrError: as `read_image`.
    """
    with opened(source, MAX_PIXELS) as image:
        if image.mode.startswith("I"):
            return _in_range(np.asarray(image), source_name(source))
        return np.asarray(image.convert("L"))


def read_object(source: Source) -> np.ndarray:
    """Mask of one class or object: 0 or black outside, one other value or colour inside.

    Returns:
        Values (H, W), of which at most one is not 0.

    Raises:
        SetrError: as `read_mask`, and for other masks.
    """
    try:
        mask = read_mask(source)
    except ColourMaskError:
        mask = packed_colours(read_mask(source, rgb=True))
    values = np.flatnonzero(np.bincount(mask.ravel())) if mask.itemsize < 3 else np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0]):
        shown = first_few(values.tolist(), 4)
        raise SetrError(
            f"{source_name(source)}: has the values {shown}; a mask of one class or object has 0 "
            "and one other value; if its edges are soft, or it was saved as JPEG, add "
            "--threshold 128"
        )
    if len(values) == 1 and is_in_alpha(source, mask):
        raise SetrError(f"{source_name(source)}: {IN_ALPHA}")
    return mask


def read_palette(source: Source) -> dict[int, int]:
    """Palette of an image file: colour (0xrrggbb) by id; empty without one."""
    if is_mat(source):
        return {}
    with opened(source, MAX_PIXELS) as image:
        if image.mode != "P":
            return {}
        values = np.array(image.getpalette("RGB"), np.int32).reshape(-1, 3)
        return dict(enumerate((values[:, 0] << 16 | values[:, 1] << 8 | values[:, 2]).tolist()))


def painted(source: Source, ids: Iterable[int]) -> set[tuple[int, int]]:
    """Pairs of id and palette colour for these ids; empty without a palette."""
    palette = read_palette(source)
    return {(i, palette[i]) for i in ids if i in palette}


def is_reordered(pairs: Iterable[tuple[int, int]]) -> bool:
    """Whether `painted` pairs of several masks number the same colours differently.

    The ids are then not class ids.
    """
    pairs = set(pairs)
    by_id, by_colour = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    return any(by_id[i] > 1 and by_colour[colour] > 1 for i, colour in pairs)


def are_reordered(masks: Sequence[Source]) -> bool:
    """`is_reordered` for mask files; they are decoded only if their palettes differ."""
    palettes = {frozenset(read_palette(mask).items()) for mask in masks}
    if len(palettes - {frozenset()}) < 2:
        return False
    return is_reordered(
        pair for mask in masks for pair in painted(mask, np.unique(read_mask(mask)).tolist())
    )


def is_in_alpha(source: Source, raw: np.ndarray) -> bool:
    """Whether a mask read as `raw` has one value everywhere but a varying alpha channel."""
    if (raw != raw[:1, :1]).any() or str(source_name(source)).endswith(".mat"):
        return False
    with opened(source, MAX_PIXELS) as image:
        if image.mode not in ("LA", "PA", "RGBA"):
            return False
        low, high = image.getchannel("A").getextrema()
        return bool(low < high)


def as_mask(source: Any, *, rgb: bool = False) -> np.ndarray:
    """Like `read_mask`, but also takes a Pillow image, an array or a tensor.

    Args:
        source: what `read_mask` takes, an open Pillow image, or an integer array or tensor (H, W),
            or uint8 (H, W, 3) if `rgb`; a tensor may have a leading channel, (1, H, W).
        rgb: as in `read_mask`.

    Raises:
        SetrError: as `read_mask`, and for other arrays.
    """
    if isinstance(source, str | os.PathLike | bytes):
        return read_mask(source, rgb=rgb)
    if hasattr(source, "convert"):
        name = getattr(source, "filename", "") or "mask"
        _require_kind(source, name, rgb=rgb)
        return _stored(source, name, rgb=rgb)
    is_tensor = hasattr(source, "detach")
    try:
        array = np.asarray(source.detach().cpu() if is_tensor else source)
    except ValueError:  # nested lists of different lengths
        raise SetrError(
            f"{type(source).__name__}: not a mask; give ids as whole numbers (H, W)"
        ) from None
    if is_tensor and array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if rgb:
        if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
            return np.ascontiguousarray(array)
        raise SetrError(f"mask {array.shape} {array.dtype}: give colours, uint8 (H, W, 3)")
    if array.ndim != 2 or array.dtype.kind not in "bui" or not array.size:
        raise SetrError(
            f"mask {array.shape} {array.dtype}: give ids as whole numbers (H, W); a transform such "
            "as ToTensor turns them into fractions"
        )
    return np.ascontiguousarray(_in_range(array, "mask"))


def _require_kind(image: Any, name: str, *, rgb: bool) -> None:
    """Refuse masks in lossy formats, and id masks where colours are expected."""
    if image.format in LOSSY_FORMATS:
        raise _lossy(name, image.format)
    if rgb and image.mode not in ("RGB", "RGBA", "P"):
        raise IdMaskError(
            f"{name}: contains one id per pixel but the data set has a colour_map; "
            "remove colour_map, or save the mask in RGB"
        )


def _lossy(name: str, form: str) -> SetrError:
    return SetrError(
        f"{name}: {form} compression has changed the ids of this mask; export it as PNG from its "
        "source, since converting this file does not restore them (of two classes only, `setr "
        "init-data DIR --threshold 128` draws it anew)"
    )


def _stored(image: Any, name: str, *, rgb: bool) -> np.ndarray:
    """Ids or colours of a Pillow image."""
    if rgb:
        return np.asarray(image.convert("RGB"))
    if image.mode in ("P", "L"):
        return np.asarray(image)
    if image.mode == "LA":  # grey with transparency, which says nothing about ids
        return np.asarray(image.getchannel("L"))
    if image.mode == "1":
        return np.asarray(image, dtype=np.uint8)
    if image.mode.startswith("I"):
        return _in_range(np.asarray(image), name)
    if image.mode == "F":
        raise SetrError(
            f"{name}: contains float32 values; save ids as whole numbers of 8 or 16 bits"
        )
    channels = np.asarray(image.convert("RGB"))
    if image.mode == "RGB" and (channels == channels[..., :1]).all():
        return np.ascontiguousarray(channels[..., 0])  # R=G=B=id, as some tools export
    raise ColourMaskError(
        f"{name}: a {image.mode} colour mask; save one id per pixel (8-bit grey or "
        "palette PNG), or give a colour_map in data.yaml (`setr init-data DIR` writes one)"
    )


def _in_range(ids: np.ndarray, name: str) -> np.ndarray:
    """Ids of bool or uint8 as uint8, others as uint16."""
    if ids.dtype in (bool, np.uint8):
        return ids.astype(np.uint8)
    if ids.min() < 0 or ids.max() > 65535:
        raise SetrError(
            f"{name}: ids {ids.min()}..{ids.max()} exceed 0..65535; 255 leaves pixels out"
        )
    return ids.astype(np.uint16)


def _mat_mask(path: str) -> np.ndarray:
    try:
        require_stored(path)
        return read_mat(path)
    except OSError as error:
        raise unreadable(path, error, path) from None
