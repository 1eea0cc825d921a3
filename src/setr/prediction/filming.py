"""Segment a video: `overlay` and `color` become videos of the same size and rate.

Every other kind is written per frame, into a folder named after the video. Videos and folders
appear when complete; of a live source the files of frames appear as they come.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from setr.prediction.kinds import KINDS, options_of
from setr.prediction.live import open_video
from setr.prediction.outputs import with_ending, write
from setr.prediction.video import VideoWriter
from setr.predictor import Predictor
from setr.result import Result
from setr.writing import part_of, write_errors

FILMS: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "overlay": ("_overlay.mp4", Result.overlay),
    "color": ("_color.mp4", Result.color),
}
"""Kinds that become a video: the ending of its name, and the picture of a frame."""


@dataclass(frozen=True)
class VideoReport:
    """The outcome of a video.

    Attributes:
        files: videos and folders written.
        frames: number of frames segmented.
        announced: number of frames by the file's header, where it is truncated; else `frames`, or 0
            if the header has none.
        dropped: number of frames of a live source that came while the model was busy.
        reconnects: how often it broke off and went on.
        ended: why a live source has no more frames, empty if that was asked for.
        shares: share of all pixels per class, largest first; the rest to 1 is unlabelled.
    """

    files: list[Path]
    frames: int
    announced: int
    dropped: int
    reconnects: int
    ended: str
    shares: dict[str, float]


def predict_video(
    predictor: Predictor,
    source: str | os.PathLike | int,
    stem: Path,
    kinds: Sequence[str] = ("overlay",),
    *,
    on_frame: Callable[[int, int], None] = lambda done, announced: None,
    limits: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> VideoReport:
    """Segment every frame of a video, or the newest ones of a live source, and write the outputs.

    Args:
        source: a video file, or what `live.is_live` knows.
        stem: output folder and name without ending: `out/clip` gives `out/clip_overlay.mp4` and
            `out/clip/000001.png`, …; of a live source the numbers of dropped frames are missing,
            and its video shows the frame before in their place, so that it runs as fast as it was.
        kinds: of `kinds.KINDS`.
        on_frame: called with the number of frames done and the number that the file announces.
        limits: of `live.LiveReader`, for a live source.
        options: see `outputs.write`.

    Raises:
        SetrError: not a video, or a file that cannot be written; none appears unfinished. What a
            live source gave until then stays.
    """
    reader = open_video(source, allow_urls=predictor.allow_urls, **limits)
    predictor.reads.require_rgb(f"{reader.name}: a video has")
    films = [kind for kind in kinds if kind in FILMS]
    single = [kind for kind in kinds if kind not in FILMS]
    shares: Counter[str] = Counter()
    done = 0
    with ExitStack() as stack:
        stack.enter_context(reader)
        live = reader.is_live
        frame_files = stack.enter_context(_FrameFiles(stem, single, at_once=live))
        writers = {
            kind: stack.enter_context(
                VideoWriter(with_ending(stem, FILMS[kind][0]), reader.rate, keep=live)
            )
            for kind in films
        }
        for done, frame in enumerate(reader, 1):
            result = predictor.predict(frame)
            for kind, writer in writers.items():
                picture = FILMS[kind][1](result, **options_of(kind, options))
                writer.add(picture, reader.place)
            result.path = f"{reader.name}#{reader.number}"
            frame_files.add(result, reader.number, **options)
            shares.update(result.shares)
            on_frame(done, reader.announced)
    files = [writer.path for writer in writers.values()] + ([stem] if single else [])
    means = {name: total / done for name, total in shares.most_common()}
    is_cut = (done if live else reader.place + 1) < reader.announced
    announced = reader.announced if is_cut else min(done, reader.announced)
    return VideoReport(
        files, done, announced, reader.dropped, reader.reconnects, reader.ended, means
    )


class _FrameFiles:
    """A folder of files per frame, `000001.png`, …; replaces files of these kinds in it.

    Args:
        kinds: of `kinds.KINDS`.
        at_once: write into the folder as it is, for one that no other run uses.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], *, at_once: bool = False) -> None:
        self.folder, self.kinds, self.at_once = folder, kinds, at_once
        self._part = folder if at_once else part_of(folder)

    def __enter__(self) -> _FrameFiles:
        if not self.at_once:
            shutil.rmtree(self._part, ignore_errors=True)
        return self

    def add(self, result: Result, number: int, **options: Any) -> None:
        """Write the files of a frame."""
        write(result, self._part / f"{number:06d}", self.kinds, **options)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.at_once:
            return
        try:
            if kind is None and self.kinds:
                with write_errors(self.folder):
                    self._publish()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def _publish(self) -> None:
        endings = "|".join(re.escape(KINDS[kind]) for kind in self.kinds)
        for old in self.folder.glob("*"):
            if re.fullmatch(rf"\d{{6,}}({endings})", old.name):
                old.unlink()
        with suppress(OSError):  # it holds other files, too, or is not there
            self.folder.rmdir()
        if not self.folder.exists():
            os.replace(self._part, self.folder)
            return
        for new in self._part.iterdir():
            os.replace(new, self.folder / new.name)
