"""The table a survey of a split fills: one row per pair, in arrays, and its file.

A pair takes 41 bytes, and five more for each class in it.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from setr.errors import SetrError
from setr.reading.files import write_bytes

FULL, ROTATED, ALL_IGNORED, BINARY, ALPHA, DARK = 1, 2, 4, 8, 16, 32
"""Flags of a pair: image decoded too; EXIF rotation; no counted pixel; ids are 0 and 255 only; the
mask is drawn in its alpha alone; no value of the image reaches `DIM`, known where it is decoded."""
DIM = 64


@dataclass(frozen=True)
class Survey:
    """One row per pair of a split.

    Attributes:
        key: (N,) uint64, of names, sizes and times of the files.
        size: (N, 2) int32, height and width of the image; 0 where unreadable.
        flags: (N,) uint8.
        content: (N,) uint64 checksum of the image file; 0 unless fully read.
        look: (N,) uint64 difference hash of the image; 0 unless fully read.
        ends: (N,) where a pair's entries in `classes` and `counts` end.
        classes: training ids that occur, pair after pair.
        counts: their pixels.
        problems: what is wrong with a pair, by its number.
    """

    key: np.ndarray
    size: np.ndarray
    flags: np.ndarray
    content: np.ndarray
    look: np.ndarray
    ends: np.ndarray
    classes: np.ndarray
    counts: np.ndarray
    problems: dict[int, str]

    def pixels(self, num_classes: int) -> np.ndarray:
        """(K,) counted pixels per class."""
        sums = np.bincount(self.classes, weights=self.counts, minlength=256)
        return sums[:num_classes].astype(np.int64)

    def images(self, num_classes: int) -> np.ndarray:
        """(K,) images in which a class occurs."""
        return np.bincount(self.classes, minlength=256)[:num_classes]

    def having(self, flag: int) -> np.ndarray:
        """Numbers of the pairs with a flag."""
        return np.flatnonzero(self.flags & flag)


def take_rows(kept: Survey, rows: np.ndarray, keys: np.ndarray) -> Survey:
    """The given rows of a survey, in that order, under new keys."""
    starts = np.concatenate(([0], kept.ends[:-1]))
    lengths = (kept.ends - starts)[rows]
    ends = np.cumsum(lengths)
    entries = np.repeat(starts[rows] - (ends - lengths), lengths) + np.arange(lengths.sum())
    problems = {i: kept.problems[int(r)] for i, r in enumerate(rows) if int(r) in kept.problems}
    per_pair = {name: getattr(kept, name)[rows] for name in ("size", "flags", "content", "look")}
    return Survey(
        key=keys, **per_pair, ends=ends, classes=kept.classes[entries], counts=kept.counts[entries],
        problems=problems,
    )  # fmt: skip


def join_rows(first: Survey, second: Survey) -> Survey:
    """The rows of one survey, then those of another."""
    offset = len(first.key)
    joined = {
        name: np.concatenate((getattr(first, name), getattr(second, name)))
        for name in Survey.__annotations__
        if name != "problems"
    }
    shift = first.ends[-1] if offset else 0
    joined["ends"] = np.concatenate((first.ends, second.ends + shift))
    later = {offset + i: text for i, text in second.problems.items()}
    return Survey(**joined, problems={**first.problems, **later})


def save_survey(place: Path, result: Survey) -> None:
    """Keep a survey; a cache folder that cannot be written costs time later, nothing else."""
    arrays = {n: getattr(result, n) for n in Survey.__annotations__ if n != "problems"}
    text = json.dumps(result.problems).encode("utf-8", "surrogatepass")
    buffer = io.BytesIO()
    np.savez(buffer, problems=np.frombuffer(text, np.uint8), **arrays)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, buffer.getvalue())
    except (OSError, SetrError):
        return


def load_survey(place: Path) -> Survey | None:
    """A kept survey; None if there is none or its file is damaged."""
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = {n: file[n] for n in Survey.__annotations__}
        text = arrays.pop("problems").tobytes().decode("utf-8", "surrogatepass")
        problems = {int(i): str(line) for i, line in json.loads(text).items()}
        return Survey(**arrays, problems=problems)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception:  # zipfile.BadZipFile and zlib.error: a damaged cache is no cache
        return None
