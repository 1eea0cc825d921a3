"""The table of a survey: one row per pair, as arrays, and how it is stored.

A pair takes 41 bytes, and five more for each class in it.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from setr.errors import SetrError
from setr.writing import write_bytes

FULL, ROTATED, ALL_IGNORED, BINARY, ALPHA, DARK = 1, 2, 4, 8, 16, 32
"""Flags of a pair: image decoded, too; EXIF rotation; all pixels ignored; only ids 0 and 255; mask
drawn in its alpha channel only; all values of the (decoded) image below `DIM`."""
DIM = 64


@dataclass(frozen=True)
class Survey:
    """One row per pair of a split.

    Attributes:
        key: (N,) uint64, hash of the files' names, sizes and modification times.
        size: (N, 2) int32, height and width of the image; 0 where unreadable.
        flags: (N,) uint8, sum of flags.
        content: (N,) uint64 checksum of the image file; 0 unless fully read.
        look: (N,) uint64 difference hash of the image; 0 unless fully read.
        ends: (N,) int64, end of each pair's entries in `classes` and `counts`.
        classes: training ids that occur, pair after pair.
        counts: pixels of each of them.
        problems: error messages by number of the pair.
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
        """(K,) pixels per class."""
        sums = np.bincount(self.classes, weights=self.counts, minlength=256)
        return sums[:num_classes].astype(np.int64)

    def images(self, num_classes: int) -> np.ndarray:
        """(K,) number of images in which each class occurs."""
        return np.bincount(self.classes, minlength=256)[:num_classes]

    def having(self, flag: int) -> np.ndarray:
        """Indices of the pairs with a flag."""
        return np.flatnonzero(self.flags & flag)


def take_rows(survey: Survey, rows: np.ndarray, keys: np.ndarray) -> Survey:
    """The given rows of a survey, in that order, with new keys."""
    starts = np.concatenate(([0], survey.ends[:-1]))
    lengths = (survey.ends - starts)[rows]
    ends = np.cumsum(lengths)
    entries = np.repeat(starts[rows] - (ends - lengths), lengths) + np.arange(lengths.sum())
    problems = {i: survey.problems[int(r)] for i, r in enumerate(rows) if int(r) in survey.problems}
    per_pair = {name: getattr(survey, name)[rows] for name in ("size", "flags", "content", "look")}
    classes, counts = survey.classes[entries], survey.counts[entries]
    return Survey(
        key=keys, **per_pair, ends=ends, classes=classes, counts=counts, problems=problems
    )


def join_rows(first: Survey, second: Survey) -> Survey:
    """Concatenate two surveys."""
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


def save_survey(path: Path, survey: Survey) -> None:
    """Save a survey to the cache; an unwritable cache folder is ignored."""
    arrays = {n: getattr(survey, n) for n in Survey.__annotations__ if n != "problems"}
    text = json.dumps(survey.problems).encode("utf-8", "surrogatepass")
    buffer = io.BytesIO()
    np.savez(buffer, problems=np.frombuffer(text, np.uint8), **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    except (OSError, SetrError):
        return


def load_survey(path: Path) -> Survey | None:
    """A cached survey, or None if there is none or its file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {n: file[n] for n in Survey.__annotations__}
        text = arrays.pop("problems").tobytes().decode("utf-8", "surrogatepass")
        problems = {int(i): str(line) for i, line in json.loads(text).items()}
        return Survey(**arrays, problems=problems)
    except Exception:  # zipfile.BadZipFile, zlib.error and others of damaged files
        return None
