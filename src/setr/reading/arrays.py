"""An image from a path, bytes, Pillow image, array or tensor as uint8 (H, W, C)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from setr.bands import Bands, as_bytes, fitting_ranges, read_pixels
from setr.errors import SetrError
from setr.images import from_pillow
from setr.reading.pillow import MAX_PIXELS, Named
from setr.reading.urls import download, is_url, require_allowed

RGB_KINDS = "uint8 RGB (H, W, 3) or grey (H, W)"


def as_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    allow_urls: bool = False,
    bands: Bands | None = None,
) -> np.ndarray:
    """Read one image from any supported source.

    Args:
        source: a path; the bytes of a file, or an open file; a Pillow image; an array uint8 RGB
            (H, W, 3) or grey (H, W); a tensor of the same or, as in torchvision, (3, H, W) or
            (1, H, W), uint8 or float from 0 to 1; an http(s) URL if `allow_urls`.
        max_pixels: larger images are refused, files by their header.
        bands: bands to read from a file instead of RGB. Arrays and tensors must then have these
            channels, in the same order; bytes are scaled by the same ranges already, an array of
            another type (16 bits, floats) is scaled here. Pillow images are refused.

    Raises:
        SetrError: unreadable, too large, or an unsupported source.
    """
    if isinstance(source, str) and is_url(source):
        require_allowed(source, allow_urls)
        source = Named(download(source), source)
    elif isinstance(source, bytearray | memoryview):
        source = bytes(source)
    elif hasattr(source, "read") and not hasattr(source, "convert"):
        source = source.read()
        if isinstance(source, str):
            raise SetrError("a file opened as text: open it with mode 'rb', or give its path")
    if isinstance(source, str | os.PathLike | bytes):
        return read_pixels(source, bands, max_pixels=max_pixels)
    channels = 3 if bands is None else len(bands.numbers)
    kinds = RGB_KINDS if bands is None else f"uint8 (H, W, {channels})"
    if hasattr(source, "convert"):
        if bands is not None:
            raise SetrError(f"Pillow image: the model takes {bands}; give the file, or {kinds}")
        return from_pillow(source, max_pixels=max_pixels)
    is_tensor = isinstance(source, torch.Tensor)
    array = _from_tensor(source, channels, kinds) if is_tensor else _from_array(source, kinds)
    given, fix = f"{array.shape} {array.dtype}", "" if bands else _fix(array)
    if array.ndim == 2 and (bands is None or channels == 1):
        array = np.repeat(array[..., None], channels, axis=2)
    if bands is not None and array.ndim == 3 and array.shape[2] == channels:
        array = _scaled(array, bands)
    if array.ndim != 3 or array.shape[2] != channels or array.dtype != np.uint8 or not array.size:
        raise SetrError(f"array {given}: give {kinds}{fix}")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise SetrError(f"array {array.shape}: above the limit of {max_pixels:,} pixels")
    return np.ascontiguousarray(array)


def _fix(array: np.ndarray) -> str:
    """How to make RGB of what arrays of images often are instead; empty for others."""
    shape, kind = array.shape, array.dtype
    if not array.size:
        return "; this one has no pixels"
    if len(shape) == 4:
        return "; predict_batch takes several"
    if len(shape) == 3 and shape[2] != 3 and shape[0] in (1, 3):
        return "; channels are last: array.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[2] == 4:
        return "; without alpha: array[..., :3]"
    if kind.kind == "f":
        return "; floats from 0 to 1: (255 * array).round().astype(np.uint8)"
    return "; of 16 bits: (array // 257).astype(np.uint8)" if kind == np.uint16 else ""


def _scaled(array: np.ndarray, bands: Bands) -> np.ndarray:
    """Values of other types as uint8, by the ranges of the bands; bytes are scaled already."""
    if array.dtype == np.uint8 or array.dtype.kind not in "uif":
        return array
    kinds = (array.dtype.name,) * array.shape[2]
    ranges = fitting_ranges("array", kinds, range(1, array.shape[2] + 1), bands.ranges)
    return as_bytes(array.transpose(2, 0, 1), ranges)


def _from_array(source: Any, kinds: str) -> np.ndarray:
    problem = SetrError(f"{type(source).__name__}: not an image; give {kinds}, or a file")
    try:
        array = np.array(source)
    except ValueError:  # nested lists of different lengths
        raise problem from None
    if array.dtype == object or not array.ndim:  # such as the None of cv2.imread
        raise problem
    return array


def _from_tensor(tensor: torch.Tensor, channels: int, kinds: str) -> np.ndarray:
    """A tensor as an array with channels last; floats in 0 to 1 are scaled to 0 to 255."""
    values = tensor.detach().cpu()
    shape = tuple(values.shape)
    grey = (1,) if channels == 3 else ()
    if values.ndim == 3 and shape[0] in (*grey, channels):
        values = values.permute(1, 2, 0).expand(-1, -1, channels)
    if values.is_floating_point():
        if values.numel() and not (values.min() >= 0 and values.max() <= 1):
            raise SetrError(f"tensor {shape} {tensor.dtype}: float images have values from 0 to 1")
        values = (values.float() * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8 or values.ndim not in (2, 3):
        raise SetrError(
            f"tensor {shape} {tensor.dtype}: give one image ({channels}, H, W), or {kinds}"
        )
    return values.numpy()
