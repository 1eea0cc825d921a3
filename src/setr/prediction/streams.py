"""What `setr predict` takes besides image files: videos, GeoTIFF files, cameras and addresses."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from setr.prediction.filming import VideoReport, predict_video
from setr.prediction.live import is_live, live_name
from setr.prediction.mapping import BLOCK_KINDS, predict_raster
from setr.prediction.outputs import with_ending, write
from setr.prediction.shares import largest
from setr.prediction.video import is_video
from setr.predictor import Predictor
from setr.reading.files import expanded
from setr.reading.gdal import is_georeferenced
from setr.reading.urls import is_url, url_name, without_password


class Stream(NamedTuple):
    """One video, GeoTIFF, camera or address, and the path its outputs are named after.

    Attributes:
        source: as it was given.
        below: the path.
        is_live: whether it is a camera or a network stream; found out once, since an output folder
            may get the name of a camera.
    """

    source: str
    below: Path
    is_live: bool = False

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return is_video(self.source) or self.is_live

    @property
    def shown(self) -> str:
        """Its name in messages, without a password."""
        return without_password(self.source)

    @property
    def stem(self) -> Path:
        """The path without its ending; that of a live source has none."""
        return self.below if self.is_live else self.below.with_suffix("")


class StreamReport(NamedTuple):
    """The outcome of a stream.

    Attributes:
        files: files and folders written.
        text: one-line summary.
        facts: entries of the manifest: of images size, shares and areas; of videos `frames`, of
            live ones also `dropped`, `reconnects` and, if they ended by themselves, `ended`.
    """

    files: list[Path]
    text: str
    facts: dict[str, Any]


def split_sources(sources: Sequence[str]) -> tuple[list[Stream], list[str]]:
    """Split what a command line names into streams and the sources of image files.

    A folder is in both lists: its GeoTIFF files are streams, its other images are not.
    """
    found: dict[str, Stream] = {}
    rest = []
    for source in sources:
        if is_live(source):
            found[source] = Stream(source, Path(live_name(source)), is_live=True)
            continue
        if is_url(source):
            found[source] = Stream(source, Path(url_name(source)))
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


def stream_names(streams: Sequence[Stream], taken: Iterable[str]) -> list[str]:
    """Output names without ending: a stream's stem, or its whole name where stems clash.

    Args:
        streams: as `split_sources` gives them.
        taken: output names of other inputs.
    """
    stems = [stream.stem.as_posix() for stream in streams]
    count = Counter([*stems, *set(taken)])
    return [
        stem if count[stem] == 1 else stream.below.as_posix()
        for stem, stream in zip(stems, streams, strict=True)
    ]


def predict_stream(
    predictor: Predictor,
    stream: Stream,
    stem: Path,
    kinds: Sequence[str],
    *,
    on_frame: Callable[[int, int], None] = lambda done, announced: None,
    limits: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> StreamReport:
    """Segment one stream.

    Args:
        stream: as `split_sources` gives it.
        stem: output folder and name without ending.
        kinds: of `kinds.KINDS`.
        on_frame: as in `predict_video`.
        limits: of `live.LiveReader`, for live sources.
        options: of `kinds.OPTIONS`; each is for the kinds that have it.

    Raises:
        SetrError: unreadable, or a file that cannot be written.
    """
    if stream.is_video:
        report = predict_video(
            predictor,
            int(stream.source) if stream.is_live and stream.source.isdecimal() else stream.source,
            stem,
            kinds,
            on_frame=on_frame,
            limits=limits,
            **options,
        )
        return _video_report(report, stream, predictor.min_confidence)
    if not is_url(stream.source) and set(kinds) <= set(BLOCK_KINDS):
        files = {kind: with_ending(stem, BLOCK_KINDS[kind]) for kind in kinds}
        found = predict_raster(predictor, stream.source, files)
        top = largest(found["shares"], predictor.min_confidence, found.get("area_m2"))
        return StreamReport(list(files.values()), f"GeoTIFF: {top}", _image_facts(found))
    result = predictor.predict(stream.source)
    result.name = stream.below.as_posix()
    facts = _image_facts(result.share())
    return StreamReport(write(result, stem, kinds, **options), repr(result), facts)


def _image_facts(share: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the manifest for one image, from what a `share` file holds."""
    height, width = share["size"]
    rounded = {name: round(value, 6) for name, value in share["shares"].items()}
    facts = {"width": width, "height": height, "classes": rounded}
    areas = {name: round(area, 4) for name, area in share.get("area_m2", {}).items()}
    return facts | ({"area_m2": areas} if areas else {})


def _video_report(report: VideoReport, stream: Stream, min_confidence: float) -> StreamReport:
    cut = f" of {report.announced} announced" if report.frames < report.announced else ""
    facts: dict[str, Any] = {"frames": report.frames}
    if stream.is_live:
        cut += f", {report.dropped} dropped"
        cut += f", reconnects: {report.reconnects}" if report.reconnects else ""
        facts |= {"dropped": report.dropped, "reconnects": report.reconnects}
    if report.ended:
        facts["ended"] = report.ended
    top = largest(report.shares, min_confidence)
    return StreamReport(report.files, f"{report.frames} frames{cut}: {top}", facts)
