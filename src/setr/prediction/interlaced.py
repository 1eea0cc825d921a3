"""Whether OpenCV gives pixels that no frame of a video has, because its frames are interlaced.

From 4.13 on, OpenCV asks FFmpeg to convert interlaced frames in a way that FFmpeg refuses, takes no
notice of that, and returns what its memory held before. Only a line that FFmpeg prints tells.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

REFUSAL = b"Cannot convert interlaced"
"""FFmpeg's words."""
SECONDS = 600.0
"""The other process is given up after this time."""
READ = """
import sys, cv2
file = cv2.VideoCapture(sys.argv[1], cv2.CAP_FFMPEG)
for _ in range(int(sys.argv[2])):
    file.grab() and file.retrieve()
"""
INTERLACED = (
    "its frames are interlaced, which this version of OpenCV does not read; convert it first, as "
    "with `ffmpeg -i INPUT -vf yadif OUTPUT.mp4`"
)
"""What is said of such a video."""


def is_refused(place: str, count: int, *, seconds: float = SECONDS) -> bool:
    """Whether FFmpeg refuses one of the first frames of a video.

    Another process reads them, as what this one prints is not ours to read. Ask where a frame
    equals the one before it, as refused ones do.

    Args:
        place: an absolute path, or an address with its scheme in lower case.
        count: of the frames.
        seconds: after which the answer is no.
    """
    if not sys.executable or getattr(sys, "frozen", False):  # a program that is not Python
        return False
    try:
        reader = subprocess.Popen(
            [sys.executable, "-c", READ, place, str(count)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OPENCV_FFMPEG_LOGLEVEL": "16"},
        )
    except OSError:
        return False
    clock = threading.Timer(seconds, reader.kill)
    clock.start()
    with reader:
        assert reader.stdout is not None
        try:
            return any(REFUSAL in line for line in reader.stdout)
        finally:
            clock.cancel()
            reader.kill()
