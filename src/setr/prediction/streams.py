"""What `setr predict` takes besides image files: videos, GeoTIFF files and http addresses."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from setr.errors import USAGE, SetrError
from setr.prediction.filming import predict_video
from setr.prediction.mapping import predict_raster
from setr.prediction.outputs import with_ending, write
from setr.prediction.rasters import RASTER_KINDS
from setr.prediction.video import is_video
from setr.predictor import Predictor
from setr.reading.files import expanded
from setr.reading.gdal import is_georeferenced
from setr.reading.urls import is_url
from setr.result import largest


class Stream(NamedTuple):
    """One video, GeoTIFF or address, and the path its outputs are named after."""

    source: str
    below: Path

    @property
    def is_video(self) -> bool:
        """Whether it is a video file."""
        return not is_url(self.source) and is_video(self.source)


def split_sources(sources: Sequence[str]) -> tuple[list[Stream], list[str]]:
    """Split what a command line names into streams and the sources of image files.

    A folder is in both lists: its GeoTIFF files are streams, its other images are not.
    """
    found: dict[str, Stream] = {}
    rest = []
    for source in sources:
        if is_url(source):
            found[source] = Stream(source, Path(_url_name(source)))
            continue
        files = expanded(source, frozenset({".tif", ".tiff"}))
        streams = [
            Stream(str(Path(file)), Path(name))
            for file, name in files
            if is_video(file) or is_georeferenced(file)
        ]
        found |= {stream.source: stream for stream in streams}
        if os.path.isdir(source) or len(streams) < len(files) or not files:
            rest.append(source)
    return list(found.values()), rest


def stems(streams: Sequence[Stream], out: Path, taken: Iterable[Path] = ()) -> list[Path]:
    """Output names without ending: a stream's stem, or its whole name where stems clash.

    Args:
        streams: as `split_sources` gives them.
        out: output folder.
        taken: output names of other inputs.

    Raises:
        SetrError: two streams would still have the same output name.
    """
    count = Counter(stream.below.with_suffix("") for stream in streams)
    others = set(taken)
    named: dict[Path, Stream] = {}
    for stream in streams:
        stem = stream.below.with_suffix("")
        name = out / (stem if count[stem] == 1 and out / stem not in others else stream.below)
        if name in named:
            raise SetrError(
                f"{stream.source} and {named[name].source} would both write {name}; use two output "
                "folders",
                code=USAGE,
            )
        named[name] = stream
    return list(named)


def predict_stream(
    predictor: Predictor,
    stream: Stream,
    stem: Path,
    kinds: Sequence[str],
    *,
    on_frame: Callable[[int, int], None] = lambda done, announced: None,
    **options: Any,
) -> tuple[list[Path], str]:
    """Segment one stream; returns the files written and a one-line summary.

    Args:
        predictor: the model.
        stream: as `split_sources` gives it.
        stem: output folder and name without ending.
        kinds: of `kinds.KINDS`.
        on_frame: as in `predict_video`.
        options: `tolerance` and `min_pixels` of the kinds with polygons.

    Raises:
        SetrError: unreadable, or a file that cannot be written.
    """
    if stream.is_video:
        report = predict_video(predictor, stream.source, stem, kinds, on_frame=on_frame, **options)
        cut = f" of {report.announced} announced" if report.frames < report.announced else ""
        top = largest(report.shares, predictor.min_confidence)
        return report.files, f"{report.frames} frames{cut}: {top}"
    if not is_url(stream.source) and set(kinds) <= set(RASTER_KINDS):
        files = {kind: with_ending(stem, RASTER_KINDS[kind]) for kind in kinds}
        shares = predict_raster(predictor, stream.source, files)
        return list(files.values()), f"GeoTIFF: {largest(shares, predictor.min_confidence)}"
    result = predictor.predict(stream.source)
    result.name = stream.below.as_posix()
    return write(result, stem, kinds, **options), repr(result)


def _url_name(url: str) -> str:
    """The file name in an address, or else its host."""
    parts = urlsplit(url)
    name = PurePosixPath(unquote(parts.path).replace("\0", "").replace("\\", "/")).name
    return name if name not in ("", "..") else parts.hostname or "image"
