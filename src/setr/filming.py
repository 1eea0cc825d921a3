"""Segment a video: `overlay` and `color` become videos of the same size and rate.

Every other kind is written per frame, into a folder named after the video.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from setr.outputs import with_ending, write
from setr.predictor import Predictor
from setr.result import Result
from setr.video import VideoReader, VideoWriter

FILMS: dict[str, tuple[str, Callable[[Result], np.ndarray]]] = {
    "overlay": ("_overlay.mp4", Result.overlay),
    "color": ("_color.mp4", Result.color),
}
"""Kinds that become a video: the ending of its name, and the picture of a frame."""


@dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
        files: videos and folders written.
        frames: how many were segmented.
        announced: how many the file says it has; less were readable where it is cut off.
        shares: share of all pixels per class, largest first.
    """

    files: list[Path]
    frames: int
    announced: int
    shares: dict[str, float]


def predict_video(
    predictor: Predictor,
    path: str | os.PathLike,
    stem: Path,
    kinds: Sequence[str] = ("overlay",),
    *,
    options: dict[str, Any] | None = None,
    on_frame: Callable[[int, int], None] = lambda done, announced: None,
) -> VideoReport:
    """Segment every frame and write what is asked for.

    Args:
        predictor: the model.
        path: a video.
        stem: output folder and name without ending: `out/clip` gives `out/clip_overlay.mp4` and
            `out/clip/000001.png`, …
        kinds: of `kinds.KINDS`.
        options: of the kinds with polygons; see `outputs.write`.
        on_frame: called with the number of frames done and announced.

    Raises:
        SetrError: not a video, or a file that cannot be written; then no video appears.
    """
    films = [kind for kind in kinds if kind in FILMS]
    single = [kind for kind in kinds if kind not in FILMS]
    shares: Counter[str] = Counter()
    done = 0
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(path))
        writers = {
            kind: stack.enter_context(VideoWriter(with_ending(stem, FILMS[kind][0]), reader.rate))
            for kind in films
        }
        for done, frame in enumerate(reader, 1):
            result = predictor.predict(frame)
            for kind, writer in writers.items():
                writer.add(FILMS[kind][1](result))
            if single:
                result.path = f"{os.fspath(path)}#{done}"
                write(result, stem / f"{done:06d}", single, **(options or {}))
            shares.update(result.shares)
            on_frame(done, max(done, reader.announced))
        announced = reader.announced
    files = [writer.path for writer in writers.values()] + ([stem] if single else [])
    means = {name: total / done for name, total in shares.most_common()}
    return VideoReport(files, done, announced, means)
