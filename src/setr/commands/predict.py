"""`setr predict MODEL IMAGES… -o OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from setr.commands.parsing import parse, require_at_least, require_default, require_within
from setr.commands.predict_arguments import Arguments
from setr.commands.shared import mirrored
from setr.errors import UsageError
from setr.prediction.kinds import OPTIONS

if TYPE_CHECKING:
    from setr.prediction.streams import Stream

LONGEST_SECONDS = 366 * 24 * 3600.0
"""Of a live source."""
SHOWING = {kind for kind, options in OPTIONS.items() if "classes" in options}
"""Kinds that can show some classes only."""
NOT_SUBMITTED = (
    *("save", "tolerance", "min_pixels", "opacity", "classes", "bands", "value_range"),
    *("pack", "pack_samples", "manifest", "retry", "shard"),
    *("batch", "exact", "workers", "engine", "actors"),
)
"""Options without effect on `--submit`."""


def run(arguments: list[str]) -> int:
    """Segment every image; broken ones are named at the end, exit code 1."""
    given: Arguments = parse(Arguments, arguments, "predict")
    _check_values(given)
    _check_combinations(given)
    from setr.commands.predict_run import find_inputs, predict, submit
    from setr.reading.storage import Storage

    storage, shard = Storage(given.out), _shard(given.shard)
    streams, items = find_inputs(given)
    _check_live(given, streams, len(items))
    _check_streams(given, streams, remote=storage.remote)
    if given.submit:
        return submit(given, items)
    return predict(given, streams, items, storage, shard)


def _check_values(given: Arguments) -> None:
    """Refuse values out of range."""
    from setr.prediction.polygons import LARGEST_TOLERANCE
    from setr.prediction.rasters import parse_bands, parse_range
    from setr.protocols import Protocol, preset

    above_0 = ("pack_samples", "batch", "workers", "actors", "window", "short_side", "max_pixels")
    require_at_least(given, 1, *above_0)
    require_at_least(given, 0, "min_pixels")
    require_within(given, 0, LARGEST_TOLERANCE, "tolerance")
    if given.seconds is not None:
        require_within(given, 1, LONGEST_SECONDS, "seconds")
    require_within(given, 0, 1, "opacity")
    require_within(given, 0, 1, "min_confidence")
    parse_bands(given.bands)
    parse_range(given.value_range)
    named = preset(given.protocol) if given.protocol else Protocol()
    named.overridden(scales=given.scales)
    mirrored(flip=given.flip, no_flip=given.no_flip)


def _check_combinations(given: Arguments) -> None:
    """Refuse an output that is no folder, and options that have no effect beside the others."""
    from setr.reading.storage import is_address

    if not is_address(given.out):
        _check_folder(Path(given.out))
    if given.submit:
        rule = f"does nothing with --submit {given.submit}; leave one of them out"
        require_default(given, rule, *NOT_SUBMITTED)
        rule = "leaves pixels without a class, which test servers refuse; leave it out"
        require_default(given, rule, "min_confidence")
        if is_address(given.out):
            raise UsageError(f"-o {given.out}: --submit writes a file; give a folder")
    if given.classes and not SHOWING & {k.strip() for k in (given.save or "").split(",")}:
        rule = f"changes no mask; add --save with one of {', '.join(sorted(SHOWING))}"
        require_default(given, rule, "classes")
    if given.pack == "no":
        rule = "does nothing without --pack; add --pack tar, or leave it out"
        require_default(given, rule, "pack_samples")
    if given.engine == "plain":
        rule = "does nothing without --engine ray; add it, or leave this out"
        require_default(given, rule, "actors")


def _check_folder(out: Path) -> None:
    """Refuse a file, or what is named like one: results are named after the images."""
    from setr.prediction.kinds import KINDS, PICTURE_FORMATS
    from setr.prediction.video import VIDEO_SUFFIXES

    endings = {Path(f"x{ending}").suffix for ending in KINDS.values()}
    is_named = out.suffix.lower() in {*endings, *PICTURE_FORMATS, *VIDEO_SUFFIXES}
    if out.is_file() or (is_named and not out.is_dir()):
        raise UsageError(
            f"-o {out}: names a file; give a folder, in which results are named after the images "
            "(from Python, result.save writes one file)"
        )


def _check_live(given: Arguments, streams: list[Stream], others: int) -> None:
    """Refuse a live source beside other inputs, which would wait for its end."""
    live = next((stream.shown for stream in streams if stream.is_live), None)
    if live is None:
        rule = "only a live source, such as a camera, has no end of its own; leave it out"
        require_default(given, rule, "seconds")
        return
    if len(streams) + others > 1:
        raise UsageError(
            f"{live}: a live source runs alone; start one command for it and another for files"
        )
    rule = f"does nothing with a live source ({live}); leave it out"
    require_default(given, rule, "shard", "pack", "engine", "retry")


def _check_streams(given: Arguments, streams: list[Stream], *, remote: bool) -> None:
    """Refuse streams where only images will do, and GeoTIFF files beside options for images."""
    from setr.reading.urls import is_url

    if streams and (given.submit or remote):
        what = "--submit takes images" if given.submit else f"{given.out}: takes images"
        raise UsageError(f"{what}, not {streams[0].shown}")
    maps = [s.source for s in streams if not s.is_video and not is_url(s.source)]
    if maps:
        rule = (
            f"resizes or mirrors images, and {maps[0]} is a GeoTIFF file, whose pixels keep their "
            "size on the ground; leave one out (--window sets its windows)"
        )
        require_default(given, rule, "protocol", "scales", "flip", "short_side")


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise UsageError(f"--shard {text}: give i/n with i from 0 to n - 1, as 0/4")
