"""Live video: cameras, and streams by their address (rtsp, rtmp, HLS, MJPEG over http).

A thread reads all the time and keeps the newest frame only. So a model slower than the source skips
frames instead of falling behind, and memory does not grow. It connects again if the source breaks
off.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from setr.errors import SetrError, first_line
from setr.prediction.interlaced import INTERLACED, is_refused
from setr.prediction.video import (
    OPEN_SECONDS,
    SECONDS,
    TICKS,
    VIDEO_SUFFIXES,
    VideoReader,
    checked_rate,
    for_ffmpeg,
    open_address,
    quiet_opencv,
    read_on,
)
from setr.processes.interrupt import Stopped
from setr.reading.urls import is_url, require_allowed, split_url, url_name, without_password

SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "tcp://", "udp://")
"""Addresses that are always streams."""
ENDINGS = (".m3u8", ".mjpeg", ".mjpg")
"""Of the path or the query of http(s) addresses that are streams."""
POLL_SECONDS = 0.1
PAUSES = (1.0, 3.0, 10.0, 30.0)
"""Seconds before each attempt to connect again."""
STEADY_SECONDS = 60.0
"""A connection that lasted so long gives all attempts back. One that ends earlier may be a short
recording, which would be repeated for ever."""
CLOSE_SECONDS = 2 * OPEN_SECONDS
"""How long the end of the thread is waited for; OpenCV's own limits let it end much earlier."""


def is_live(source: Any) -> bool:
    """Whether this is a camera (0, `0`, `/dev/video0`) or the address of a stream.

    A number is a path if such a file or folder exists.
    """
    if isinstance(source, str) and is_url(source):
        parts = split_url(source.lower())
        return parts.path.endswith(ENDINGS) or parts.query.endswith(ENDINGS)
    is_stream = isinstance(source, str) and source.lower().startswith(SCHEMES)
    return is_stream or camera_number(source) is not None


def camera_number(source: Any) -> int | None:
    """The number of a camera as OpenCV counts them; None for other sources."""
    if isinstance(source, int) and not isinstance(source, bool):
        return source if source >= 0 else None
    if not isinstance(source, str):
        return None
    found = re.fullmatch(r"(?:/dev/video)?([0-9]{1,3})", source)
    is_path = not source.startswith("/dev/") and os.path.lexists(source)
    return int(found[1]) if found and not is_path else None


def live_name(source: Any) -> str:
    """A file name for what a source sends from now on: `camera-0-20260131T120000Z`."""
    number = camera_number(source)
    name = f"camera-{number}" if number is not None else url_name(os.fspath(source))
    if Path(name).suffix.lower() in (*ENDINGS, *VIDEO_SUFFIXES):
        name = Path(name).stem
    return f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def open_video(source: Any, *, allow_urls: bool = False, **limits: Any) -> VideoReader | LiveReader:
    """A reader of a video file, an address or a camera.

    Args:
        source: as `is_live` or `is_video` knows it.
        allow_urls: whether addresses may be opened.
        limits: of `LiveReader`, for live sources.
    """
    text = str(source)
    if is_url(text) or text.lower().startswith(SCHEMES):
        require_allowed(text, allow_urls)
    return LiveReader(source, **limits) if is_live(source) else VideoReader(source)


class LiveReader:
    """Reads a camera or a stream as `VideoReader` a file; if it breaks off, it is opened again.

    A stream that announces its length, such as a finished HLS stream, is read once, and none of its
    frames is dropped.

    Args:
        source: camera or address.
        until: asked often; true ends the iteration.
        seconds: of video after which the iteration ends; by the time when the frames came, or by
            their number in a stream with an end.

    Raises:
        SetrError: cannot be opened, or sends nothing.
        Stopped: `until` was true before the first frame.
    """

    def __init__(
        self, source: Any, *, until: Callable[[], bool] = lambda: False, seconds: float = math.inf
    ) -> None:
        self.source, self.until, self.seconds = source, until, seconds
        self.name = without_password(str(source))
        self.is_live, self.ended = True, ""
        self.rate, self.announced = 25.0, 0
        self.number = self.place = self.dropped = self.reconnects = 0
        self._opened = self._over = self._closing = self._refused = False
        self._problem = ""
        self._count = self._attempts = 0  # frames that came, attempts since the last steady one
        self._hangs = math.inf  # the time from which the thread is given up
        self._newest: tuple[int, float, np.ndarray] | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="live video", daemon=True)

    def __enter__(self) -> LiveReader:
        self._thread.start()
        try:
            self._wait(lambda: self._opened or self._over)
            if not self._opened:
                raise SetrError(f"{self.name}: {self._problem or self._cannot_open()}")
            self._wait_for_frame(OPEN_SECONDS)
            if self._newest is None:
                self._require_not_stopped()
                raise SetrError(f"{self.name}: sends no frame that can be read")
        except BaseException:
            self._close()
            raise
        return self

    def __iter__(self) -> Iterator[np.ndarray]:
        start: float | None = None
        while (start is None or not self.until()) and self._wait_for_frame(2 * SECONDS):
            with self._change:
                assert self._newest is not None
                number, came, frame = self._newest
                self._newest = None
                self._change.notify_all()
            start = came if start is None else start
            self.number = number
            passed = (number - 1) / self.rate if self.announced else came - start
            if passed >= self.seconds:
                return
            self.place = round(passed * self.rate)  # by the time when the frame came
            yield frame
        if not self.until() and (not self._over or self._problem or not self.announced):
            lost = self._problem or "the source stopped, or the connection was lost"
            tried = f" and {self._attempts} attempts to connect again" if self._attempts else ""
            self.ended = f"{lost if self._over else _silence()}, after {self.number} frames{tried}"

    def __exit__(self, *_: Any) -> None:
        self._close()

    def _wait_for_frame(self, seconds: float) -> bool:
        """Wait so long, and for as long as the thread may need to connect."""
        end = time.monotonic() + seconds

        def there() -> bool:
            given_up = time.monotonic() > max(end, self._hangs)
            return self._newest is not None or self._over or given_up

        self._wait(there)
        return self._newest is not None

    def _wait(self, there: Callable[[], bool]) -> None:
        """Wait until `there` or `until`."""
        with self._change:
            while not there() and not self.until():
                self._change.wait(POLL_SECONDS)

    def _require_not_stopped(self) -> None:
        if self.until():
            raise Stopped

    def _cannot_open(self) -> str:
        self._require_not_stopped()
        if camera_number(self.source) is not None:
            return (
                "no camera of this number can be opened; check that it is connected, and that no "
                "other program uses it"
            )
        return (
            "no video can be opened at this address; check that it is right, with user and "
            "password where needed, and that the source is running"
        )

    def _close(self) -> None:
        """End the thread. Python must not end while it is in OpenCV, or the process aborts."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def _is_refused(self) -> bool:
        """Whether FFmpeg refuses the frames of this address; a camera is read without it."""
        if camera_number(self.source) is not None:
            return False
        return is_refused(for_ffmpeg(os.fspath(self.source)), 2, seconds=OPEN_SECONDS)

    def _read(self) -> None:
        """What the thread does: only it touches the capture."""
        try:
            self._read_connections()
        finally:
            with self._change:
                self._over = True
                self._change.notify_all()

    def _read_connections(self) -> None:
        """Read from one connection after another, until one is the last."""
        while not self._closing:
            self._problem = ""
            began, before = time.monotonic(), self._count
            try:
                self._read_frames()
            except Exception as error:  # of OpenCV
                self._problem = first_line(error)
            sent = self._count > before
            self.reconnects += sent and before > 0
            if self.announced or not self._count or self._refused:
                return
            if sent and time.monotonic() - began > STEADY_SECONDS:
                self._attempts = 0
            if self._attempts == len(PAUSES):
                return
            pause = PAUSES[self._attempts]
            self._attempts += 1
            self._hangs = time.monotonic() + pause + CLOSE_SECONDS
            with self._change:
                self._change.wait_for(lambda: self._closing, pause)

    def _read_frames(self) -> None:
        """Read from one connection until it ends."""
        with quiet_opencv():
            capture = open_capture(self.source)
        try:
            if not capture.isOpened():
                return
            if not self._opened:
                with self._change:
                    self.rate = checked_rate(capture.get(cv2.CAP_PROP_FPS), TICKS)
                    self.announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
                    self._opened = True
                    self._change.notify_all()
            first = np.empty(0)
            while not self._closing:
                asked = time.monotonic()
                self._hangs = asked + 2 * SECONDS  # OpenCV gives up earlier
                found, frame = read_on(capture) if self.announced else capture.read()
                came = time.monotonic()
                if not found:
                    self._problem = _silence() if came - asked > 0.95 * SECONDS else ""
                    return
                self._count += 1
                if self._count == 2 and np.array_equal(frame, first) and self._is_refused():
                    self._problem, self._refused = INTERLACED, True
                    return
                first = frame if self._count == 1 else first
                frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                with self._change:
                    while self.announced and self._newest is not None and not self._closing:
                        self._change.wait()
                    self.dropped += self._newest is not None and not self._closing
                    self._newest = self._count, came, frame
                    self._change.notify_all()
        finally:
            capture.release()


def _silence() -> str:
    return f"it sent nothing for {SECONDS:g} seconds"


def open_capture(source: Any) -> cv2.VideoCapture:
    """OpenCV's capture of a camera or an address; `isOpened` tells whether that worked."""
    number = camera_number(source)
    if number is not None:
        return cv2.VideoCapture(number)
    return open_address(os.fspath(source))
