"""Video files, read and written frame by frame, so that memory does not grow with their length.

OpenCV decodes and encodes. Videos are written as MPEG-4 without sound and with even sides: of an
odd number of rows or columns the last one is left out.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from setr.errors import SetrError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
LARGEST_TICK = 65_535
"""MPEG-4 stores a rate as a fraction of integers up to this, which OpenCV makes of its digits."""


def is_video(path: Any) -> bool:
    """Whether a path names a video, by its suffix."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 RGB (H, W, 3), upright; one is in memory at a time.

    Raises:
        SetrError: no such file, or not a video.
    """
    with VideoReader(path) as reader:
        yield from reader


class VideoReader:
    """An open video: a context manager, iterated once."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.name = os.fspath(path)

    def __enter__(self) -> VideoReader:
        if not os.path.isfile(self.name):
            raise SetrError(f"{self.name}: no such file")
        if not os.path.getsize(self.name):
            raise SetrError(f"{self.name}: the file is empty (0 bytes)")
        self._file = cv2.VideoCapture(os.path.abspath(self.name))  # never `protocol:name`
        if not self._file.isOpened():
            raise SetrError(f"{self.name}: not a video in a known format, or broken")
        rate = self._file.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else 25.0
        self.announced = max(0, int(self._file.get(cv2.CAP_PROP_FRAME_COUNT)))
        return self

    def __iter__(self) -> Iterator[np.ndarray]:
        found, frame = self._file.read()
        if not found:
            raise SetrError(f"{self.name}: holds no frame that can be read")
        while found:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            found, frame = self._file.read()

    def __exit__(self, *_: Any) -> None:
        self._file.release()


def part_of(path: Path) -> Path:
    """The hidden name of an unfinished file; the next run overwrites what a killed one left."""
    mark = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]
    return path.with_name(f".{mark}.part")


class VideoWriter:
    """A video that appears under its name when complete; its size is that of the first frame."""

    def __init__(self, path: Path, rate: float) -> None:
        digits = int(math.log10(LARGEST_TICK / rate))  # of 119.957, as phones write it, two
        self.path, self.rate = path, round(rate, digits)
        self._part = part_of(path).with_suffix(".mp4")
        self._file: Any = None
        self._count = 0

    def __enter__(self) -> VideoWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetrError(f"{self.path}: cannot write: {error.strerror}") from None
        return self

    def add(self, picture: np.ndarray) -> None:
        """Append a frame uint8 RGB (H, W, 3)."""
        if self._file is None:
            size = (picture.shape[1], picture.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._file = cv2.VideoWriter(os.path.abspath(self._part), codec, self.rate, size)
            if not self._file.isOpened():
                raise SetrError(f"{self.path}: cannot write a video of {size[0]}x{size[1]}")
        self._file.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._count += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self._file is not None:
                self._file.release()
                if kind is None:
                    self._require_whole()
                    os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def _require_whole(self) -> None:
        """Read the frame count back, because OpenCV does not report a full disk."""
        file = cv2.VideoCapture(os.path.abspath(self._part))
        found = int(file.get(cv2.CAP_PROP_FRAME_COUNT))
        file.release()
        if found != self._count:
            raise SetrError(
                f"{self.path}: cannot write: {found} of {self._count} frames can be read back; "
                "the disk may be full"
            )
