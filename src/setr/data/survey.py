"""Reads every pair of a split once, in parallel, and caches what was found.

A survey takes minutes on a large data set, so its result is cached (in `SETR_CACHE`, or
`~/.cache/setr`). A pair is read again only if name, size or modification time of a file changed, if
it had a problem, or if a full survey is wanted and the image was not decoded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from setr.bands import as_rgb, check_pixels, read_pixels
from setr.data.dataset import Dataset
from setr.data.pairs import Pairs
from setr.data.survey_rows import (
    ALL_IGNORED,
    ALPHA,
    BINARY,
    DARK,
    DIM,
    FULL,
    ROTATED,
    Survey,
    join_rows,
    load_survey,
    save_survey,
    take_rows,
)
from setr.errors import SetrError
from setr.labels import IGNORE
from setr.processes.quota import cpus
from setr.reading.masks import is_in_alpha
from setr.reading.pillow import file_bytes
from setr.writing import cache_folder

VERSION = 5
_CHUNK = 2048  # pairs submitted to the threads at a time
_HASHES = 1 << 16  # pairs of hashes compared at a time, which fit into the CPU's cache

Progress = Callable[[int, int], None]


class _PairInfo(NamedTuple):
    """One row of a survey; `counts` are the pixels of the classes that occur."""

    size: tuple[int, int] = (0, 0)
    flags: int = 0
    content: int = 0
    look: int = 0
    classes: bytes = b""
    counts: tuple[int, ...] = ()
    problem: str = ""


def survey(dataset: Dataset, *, full: bool = False, progress: Progress | None = None) -> Survey:
    """Read every pair of a split, or take it from the cache.

    Args:
        full: decode the images, too; otherwise only masks are decoded, and header and end of the
            image files are read, which finds missing, unsupported and truncated files.
        progress: called with (done, total) while files are read.
    """
    keys = np.fromiter(_keys(dataset), np.uint64, len(dataset))
    file = _cache_file(dataset)
    cached = load_survey(file)
    rows = _known_rows(keys, cached, full)
    if cached is not None and (rows >= 0).all():
        same = len(rows) == len(cached.key) and (rows == np.arange(len(rows))).all()
        return cached if same else take_rows(cached, rows, keys)
    missing = np.flatnonzero(rows < 0)
    fresh = _examine_all(dataset, missing, full, progress)
    if len(missing) == len(keys):
        result = dataclasses.replace(fresh, key=keys)
    else:
        assert cached is not None
        rows[missing] = len(cached.key) + np.arange(len(missing))
        result = take_rows(join_rows(cached, fresh), rows, keys)
    if keys.any():
        save_survey(file, result)
    return result


# --- reading --------------------------------------------------------------------------------------


def _examine_all(
    dataset: Dataset, indices: np.ndarray, full: bool, progress: Progress | None
) -> Survey:
    number = len(indices)
    size, flags = np.zeros((number, 2), np.int32), np.zeros(number, np.uint8)
    content, look = np.zeros((2, number), np.uint64)
    ends = np.zeros(number, np.int64)
    classes, counts, problems = bytearray(), array("I"), {}
    with ThreadPoolExecutor(cpus()) as pool:
        for start in range(0, len(indices), _CHUNK):
            part = indices[start : start + _CHUNK]
            infos = pool.map(lambda i: _examine(dataset, int(i), full), part)
            for row, info in enumerate(infos, start):
                size[row], flags[row] = info.size, info.flags
                content[row], look[row] = info.content, info.look
                classes += info.classes
                counts.extend(info.counts)
                ends[row] = len(classes)
                if info.problem:
                    problems[row] = info.problem
                if progress:
                    progress(row + 1, number)
    packed = np.frombuffer(bytes(classes), np.uint8), np.array(counts, np.uint32)
    return Survey(np.zeros(number, np.uint64), size, flags, content, look, ends, *packed, problems)


def _examine(dataset: Dataset, index: int, full: bool) -> _PairInfo:
    try:
        size, mask, flags, content, look = _read(dataset, index, full)
    except SetrError as error:
        return _PairInfo(problem=str(error))
    histogram = np.bincount(mask.ravel(), minlength=256)
    histogram[IGNORE] = 0
    present = np.flatnonzero(histogram)
    if not present.size:
        flags |= ALL_IGNORED
    counts = tuple(int(n) for n in histogram[present])
    return _PairInfo(size, flags, content, look, bytes(present.astype(np.uint8)), counts)


def _read(
    dataset: Dataset, index: int, full: bool
) -> tuple[tuple[int, int], np.ndarray, int, int, int]:
    flags = content = look = 0
    image_source = None
    if dataset.decoded:
        image, raw = dataset.open_raw(index)
        size, pixels = (image.shape[0], image.shape[1]), image[:]
        content, look = _fingerprint(pixels.tobytes(), pixels)
        flags = FULL | DARK * bool(pixels.max() < DIM)
    else:
        image_source, mask_source = dataset.sources(index)
        size, rotated = check_pixels(image_source, dataset.bands)
        flags |= ROTATED * rotated
        if full:
            pixels = read_pixels(image_source, dataset.bands)
            content, look = _fingerprint(file_bytes(image_source), pixels)
            flags |= FULL | DARK * bool(pixels.max() < DIM)
        raw = dataset.raw_mask(index, mask_source, size)
        assert mask_source is not None  # `raw_mask` requires it
        flags |= ALPHA * is_in_alpha(mask_source, raw)
    if raw.ndim == 2 and raw.max(initial=0) == 255:
        used = np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
        flags |= BINARY * (set(used.tolist()) <= {0, 255})
    return size, dataset.to_train_ids(index, raw, image_source)[:], flags, content, look


def _fingerprint(data: bytes, image: np.ndarray) -> tuple[int, int]:
    """Checksum of a file's bytes, and the difference hash of its image."""
    return zlib.crc32(data) << 32 | len(data) & 0xFFFFFFFF, difference_hash(as_rgb(image))


def difference_hash(image: np.ndarray) -> int:
    """64-bit perceptual hash that changes little when an image is resized or recompressed.

    Each bit says whether brightness rises between two neighbours in a 9x8 thumbnail.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def near_hashes(known: np.ndarray, hashes: np.ndarray, bits: int) -> np.ndarray:
    """Indices of the hashes (uint64) that differ from any known one in at most `bits` bits.

    If hashes are split into `bits + 1` pieces, two that are this close have at least one piece in
    common (pigeonhole principle), so only hashes with an equal piece are compared. 0 means no hash.
    """
    known = np.unique(known[known != 0])
    values, inverse = np.unique(hashes, return_inverse=True)
    near = np.isin(values, known)
    width = 64 // (bits + 1)
    for shift in range(0, 64, width):
        theirs, ours = ((h >> np.uint64(shift)) % np.uint64(1 << width) for h in (known, values))
        order = np.argsort(theirs)
        theirs, ordered = theirs[order], known[order]
        left = np.flatnonzero(~near)
        first = np.searchsorted(theirs, ours[left])
        number = np.searchsorted(theirs, ours[left], "right") - first
        splits = np.flatnonzero(np.diff(np.cumsum(number) // _HASHES)) + 1
        for part in np.split(np.arange(len(left)), splits):
            n = number[part]
            mine = np.repeat(left[part], n)
            other = np.arange(len(mine)) + np.repeat(first[part] - np.cumsum(n) + n, n)
            near[mine[_bit_count(values[mine] ^ ordered[other]) <= bits]] = True
    return np.flatnonzero(near[inverse] & (hashes != 0))


def _bit_count(x: np.ndarray) -> np.ndarray:
    """Number of set bits of (N,) uint64; `np.bitwise_count` needs NumPy 2."""
    pairs, fours, eights, bytes_ = map(
        np.uint64, (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
    )
    x = x - (x >> np.uint64(1) & pairs)
    x = (x & fours) + (x >> np.uint64(2) & fours)
    return (x + (x >> np.uint64(4)) & eights) * bytes_ >> np.uint64(56)


# --- cache ----------------------------------------------------------------------------------------


def _keys(dataset: Dataset) -> Iterator[int]:
    """A key per pair that changes with its files; 0 if changes cannot be detected."""
    version = dataset.version
    if version is not None or dataset.decoded:
        for index in range(len(dataset)):
            name = dataset.image_name(index)  # not the index, which is another one in a part
            text = f"{dataset.name}/{dataset.split}/{version}/{name}/{VERSION}"
            yield 0 if version is None else _digest(text)
        return
    for image, mask in dataset.names():
        try:
            first = os.stat(image)
            text = f"{image}|{first.st_size}|{first.st_mtime_ns}"
            if mask is not None:
                second = os.stat(mask)
                text += f"|{mask}|{second.st_size}|{second.st_mtime_ns}"
        except (OSError, ValueError):  # no such file, or a name that no file can have
            yield 0
            continue
        yield _digest(text)


def _digest(text: str) -> int:
    data = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def _cache_file(dataset: Dataset) -> Path:
    roots = [str(root) for root in dataset.pairs.roots] if isinstance(dataset.pairs, Pairs) else []
    labels = json.dumps(dataset.labels.to_dict(), sort_keys=True)
    labels += "" if dataset.bands is None else str(dataset.bands)
    name = hashlib.blake2b(
        f"{VERSION}|{dataset.name}|{dataset.split}|{roots}|{labels}".encode(
            "utf-8", "surrogateescape"
        ),
        digest_size=12,
    ).hexdigest()
    return cache_folder("surveys") / f"{name}.npz"


def _known_rows(keys: np.ndarray, cached: Survey | None, full: bool) -> np.ndarray:
    """Row of each key in the cached survey, or -1 if the pair has to be read."""
    rows = np.full(len(keys), -1, np.int64)
    if cached is None or not len(cached.key):
        return rows
    order = np.argsort(cached.key, kind="stable")
    nearest = np.searchsorted(cached.key, keys, sorter=order).clip(max=len(order) - 1)
    found = order[nearest]
    usable = (cached.key[found] == keys) & (keys != 0)
    if full:
        usable &= (cached.flags[found] & FULL) > 0
    if cached.problems:
        usable &= ~np.isin(found, list(cached.problems))
    rows[usable] = found[usable]
    return rows
