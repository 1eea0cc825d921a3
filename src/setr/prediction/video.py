"""Videos, read and written frame by frame, so that memory does not grow with their length.

OpenCV decodes (files, also at http addresses) and encodes. Videos are written as MPEG-4 without
sound and with even sides: of an odd number of rows or columns the last one is left out.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from setr.errors import SetrError
from setr.prediction.interlaced import INTERLACED, is_refused
from setr.reading.urls import is_url, split_url, without_password
from setr.writing import make_folder, part_of

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what is wrong is told in one line

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
LARGEST_TICK = 65_535
"""MPEG-4 stores a rate as a fraction of integers up to this, which OpenCV makes of its digits."""


OPEN_SECONDS = 15.0
"""An address that does not open in this time is given up."""
SECONDS = 10.0
"""A source that sends no frame for this time is given up."""
TIMED = (".webm", ".mkv")
"""Endings of files that announce the highest rate of a video, not the mean."""
TICKS = 1000.0
"""A second has so many in them and in streams; OpenCV tells this where a rate is not known."""
LONGEST_GAP = 3600.0
"""Times of frames that are further apart in seconds are damaged."""
MOST_DAMAGED = 250
"""So many frames in a row that cannot be read are the end of a file."""
DAMAGED_SECONDS = 1.0
"""So are those for which OpenCV takes this time, as where an address sends nothing more."""


def is_video(source: Any) -> bool:
    """Whether a path or an http(s) address names a video file, by its suffix."""
    if not isinstance(source, str | os.PathLike):
        return False
    name = os.fspath(source)
    return Path(split_url(name).path if is_url(name) else name).suffix.lower() in VIDEO_SUFFIXES


class VideoReader:
    """A file, also at an http(s) address, of which few frames are in memory.

    A context manager, iterated once, over frames uint8 RGB (H, W, 3), upright. `live.LiveReader` is
    one with the same attributes.

    Attributes:
        name: for messages, without a password.
        is_live: whether it comes while it is shot, and cannot be read again.
        rate: frames per second that the source announces, 25 if it does not.
        announced: number of frames of a recording by its header, 0 if it does not say.
        number: of the current frame, counted from 1 at the source.
        place: index of the current frame in a video of this rate that is as fast as the source.
        dropped: number of frames that were left out because newer ones were there.
        reconnects: how often a live source broke off and went on.
        ended: why a live source has no more frames; empty if that was asked for.

    Raises:
        SetrError: no such file, or not a video.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        self.name = without_password(self.path)
        self.is_live, self.dropped, self.reconnects, self.ended = False, 0, 0, ""
        self.rate, self.announced, self.number = 25.0, 0, 0
        self.place, self._began = -1, math.nan
        self._is_timed = Path(self.name.partition("?")[0]).suffix.lower() in TIMED

    def __enter__(self) -> VideoReader:
        self._file = self._opened()
        if not self._file.isOpened():
            raise SetrError(f"{self.name}: not a video in a known format, or broken")
        below = TICKS if self._is_timed else LARGEST_TICK
        self.rate = checked_rate(self._file.get(cv2.CAP_PROP_FPS), below)
        self.announced = max(0, int(self._file.get(cv2.CAP_PROP_FRAME_COUNT)))
        return self

    def _opened(self) -> cv2.VideoCapture:
        if is_url(self.path):
            with quiet_opencv():
                return open_address(self.path)
        if not os.path.isfile(self.path):
            raise SetrError(f"{self.name}: no such file")
        if not os.path.getsize(self.path):
            raise SetrError(f"{self.name}: the file is empty (0 bytes)")
        with quiet_opencv():
            return open_file(self.path)

    def __iter__(self) -> Iterator[np.ndarray]:
        found, frame = read_on(self._file)
        if not found:
            raise SetrError(f"{self.name}: holds no frame that can be read")
        is_checked = False
        while found:
            self.place = self._placed()
            found, following = read_on(self._file)
            is_alone = not found and not self.number
            if not is_checked and (is_alone or (found and np.array_equal(frame, following))):
                is_checked = True
                self._require_progressive(self.number + 1 + found)
            self.number += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            frame = following

    def _require_progressive(self, count: int) -> None:
        """Refuse a video if its first frames are interlaced and OpenCV does not read them."""
        file = for_ffmpeg(self.path) if is_url(self.path) else os.path.abspath(self.path)
        if is_refused(file, count):
            raise SetrError(f"{self.name}: {INTERLACED}")

    def _placed(self) -> int:
        """The place of the frame that was just read; by its time where the rate is not the mean."""
        at = self._file.get(cv2.CAP_PROP_POS_MSEC) / 1000
        self._began = at if math.isnan(self._began) else self._began
        ahead = (at - self._began) * self.rate - self.place
        is_sound = self._is_timed and 0 < ahead <= LONGEST_GAP * self.rate
        return self.place + (round(ahead) if is_sound else 1)

    def __exit__(self, *_: Any) -> None:
        self._file.release()


def checked_rate(rate: float, below: float) -> float:
    """The frames per second that OpenCV tells, or 25 if they make no sense."""
    return rate if 0 < rate < below else 25.0


def open_file(path: str | os.PathLike) -> cv2.VideoCapture:
    """OpenCV's capture of a file; `isOpened` tells whether that worked.

    Through FFmpeg, wherever OpenCV is built with it: of files that it cannot read, OpenCV's own
    readers print bytes on the terminal.
    """
    has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    reader = cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY
    return cv2.VideoCapture(os.path.abspath(path), reader)  # never `protocol:name`


def read_on(file: cv2.VideoCapture) -> tuple[bool, np.ndarray]:
    """The next frame; damaged ones before it are left out, which OpenCV tells like the end."""
    began = time.monotonic()
    for _ in range(MOST_DAMAGED):
        found, frame = file.read()
        if found or time.monotonic() - began > DAMAGED_SECONDS:
            break
    return found, frame


def for_ffmpeg(address: str) -> str:
    """The address with its scheme in lower case; FFmpeg knows no other."""
    scheme, mark, rest = address.partition("://")
    return scheme.lower() + mark + rest


def open_address(address: str) -> cv2.VideoCapture:
    """OpenCV's capture of an address, through FFmpeg; `isOpened` tells whether that worked."""
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(OPEN_SECONDS * 1000)]
    limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(SECONDS * 1000)]
    return cv2.VideoCapture(for_ffmpeg(address), cv2.CAP_FFMPEG, limits)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Context manager without OpenCV's own messages on stderr; errors are told in one line."""
    log = cv2.utils.logging
    before = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)


class VideoWriter:
    """A video that appears under its name when complete; its size is that of the first frame.

    Args:
        rate: frames per second.
        keep: let it appear also after an error or a second Ctrl-C, with the frames so far.
    """

    def __init__(self, path: Path, rate: float, *, keep: bool = False) -> None:
        self.keep = keep
        digits = int(math.log10(LARGEST_TICK / rate))  # of 119.957, as phones write it, two
        self.path, self.rate = path, round(rate, digits)
        self._part = part_of(path).with_suffix(".mp4")
        self._file: Any = None
        self._count = 0
        self._last: np.ndarray | None = None

    def __enter__(self) -> VideoWriter:
        make_folder(self.path.parent)
        return self

    def add(self, picture: np.ndarray, place: int | None = None) -> None:
        """Append a frame uint8 RGB (H, W, 3); one of another size is scaled.

        Args:
            place: its index; the frame before is repeated up to it, and a frame whose index is
                already taken is left out.
        """
        while self._last is not None and place is not None and self._count < place:
            self._write(self._last)
        if place is None or self._count <= place:
            self._write(picture)
            self._last = picture

    def _write(self, picture: np.ndarray) -> None:
        if self._file is None:
            size = self._size = (picture.shape[1], picture.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._file = cv2.VideoWriter(os.path.abspath(self._part), codec, self.rate, size)
            if not self._file.isOpened():
                raise SetrError(f"{self.path}: cannot write a video of {size[0]}x{size[1]}")
        if picture.shape[1::-1] != self._size:
            picture = cv2.resize(picture, self._size)
        self._file.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._count += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self._file is not None:
                self._file.release()
                if kind is None or self.keep:
                    self._require_whole()
                    os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def _require_whole(self) -> None:
        """Read the frame count back, because OpenCV does not report a full disk."""
        file = open_file(self._part)
        found = int(file.get(cv2.CAP_PROP_FRAME_COUNT))
        file.release()
        if found != self._count:
            raise SetrError(
                f"{self.path}: cannot write: {found} of {self._count} frames can be read back; "
                "the disk may be full"
            )
