"""`setr predict MODEL IMAGES… -o OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from setr.arguments.choices import Precision, ServerName
from setr.cli import parse, require_at_least, require_default, require_within
from setr.commands.shared import Device, Flip, Model, NoFlip, Scales, mirrored
from setr.errors import USAGE, SetrError
from setr.images import MAX_PIXELS
from setr.prediction.kinds import OPACITY
from setr.processes.quota import cpus

if TYPE_CHECKING:
    from setr.prediction.streams import Stream

LONGEST_SECONDS = 366 * 24 * 3600.0
"""Of a live source."""
NOT_SUBMITTED = (
    *("save", "tolerance", "min_pixels", "opacity", "bands", "value_range"),
    *("pack", "pack_samples", "manifest", "retry", "shard"),
    *("batch", "exact", "workers", "engine", "actors"),
)
"""Options without effect on `--submit`."""


@dataclass(frozen=True)
class Arguments:
    """Segment images; every output has the size of its input.

    OUT/manifest.jsonl has one line per image. The same command continues where a stopped one ended,
    and does again what has changed since: images, model or settings.
    """

    model: Model
    """A model directory, Hub name, checkpoint or file of `setr export`."""
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGES…", help_behavior_hint="(required)"),
    ]
    """Files, folders (walked; hidden files and OUT left out), quoted globs, videos, GeoTIFF files,
    tar shards, Parquet files, or addresses of images and archives for fsspec (s3://…). Or one live
    source: the number of a camera (0), or the address of a stream (rtsp://…)."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder or fsspec address for the results, named after the images (a.png and a.jpg give
    a.png.png, a.jpg.png); the layout of a walked folder is kept."""
    save: str | None = None
    """What to write, joined with commas: mask (palette PNG of ids; GeoTIFF of a GeoTIFF), ids (grey
    PNG), color, overlay, confidence, scores, share, geojson, gpkg, coco, coco_rle, labelme. By
    default mask, and of a video overlay."""
    tolerance: float = 0.0
    """Polygons may leave out corners where that moves the outline by at most so many pixels."""
    min_pixels: int = 1
    """Polygons of smaller regions are left out."""
    opacity: float = OPACITY
    """Of the class colours in overlays, from 0 to 1."""
    min_confidence: float = 0.0
    """Pixels whose class is less probable, 0 to 1, are unlabelled: 255 in masks, black in colours,
    in no polygon."""
    protocol: str | None = None
    """paper-ss, paper-ms, mmseg-ss, mmseg-ms or whole, as in `setr eval`; the model's own if not
    given. Neither this nor --scales nor --flip is for GeoTIFF files, which are run as they are."""
    scales: Scales = None
    flip: Flip = False
    no_flip: NoFlip = False
    window: int | None = None
    """Run images by blended windows of so many pixels, whatever the model's protocol."""
    bands: str = ""
    """Bands of a GeoTIFF shown as red, green and blue, such as 4,3,2; by default the first. Of a
    model that was trained on bands, those of every file; by default its own."""
    value_range: str = ""
    """Values of these files that become 0 and 255, such as 0,3000; by default the model's, else the
    whole range of 8 and 16 bits."""
    allow_urls: bool = False
    """Download images named by http(s) addresses, and open streams."""
    seconds: float | None = None
    """End a live source after so many seconds; by default it runs until Ctrl-C."""
    submit: ServerName | None = None
    """Write only OUT/NAME.zip, in the form that data set's test server takes."""
    pack: Literal["no", "tar", "parquet"] = "no"
    """Write archives of many results instead of single files."""
    pack_samples: int = 1000
    """Results per archive."""
    manifest: Literal["jsonl", "parquet"] = "jsonl"
    """parquet writes the manifest also as a table when all is done."""
    retry: bool = False
    """Try images again that failed before."""
    shard: str = "0/1"
    """i/n does only the i-th part of n, counted from 0, for n processes that share OUT."""
    batch: int = 8
    """Images of one size per pass of the model."""
    exact: bool = True
    """Batch only where that gives, bit for bit, the results of one by one."""
    workers: int = min(4, cpus())
    """Threads that decode, and as many that encode."""
    engine: Literal["plain", "ray"] = "plain"
    """ray: a pool of actors, here or on the cluster RAY_ADDRESS names (extra ray)."""
    actors: int | None = None
    """Of the Ray engine; one per GPU, or as many as the processors suffice for, if not given."""
    device: Device = "auto"
    precision: Precision = "auto"
    """Of the forward pass."""
    max_pixels: int = MAX_PIXELS
    """Larger images are refused from their header."""
    json: bool = False
    """Print one JSON object with the outcome of every image."""


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

    require_at_least(given, 1, "pack_samples", "batch", "workers", "actors", "window", "max_pixels")
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
            raise SetrError(f"-o {given.out}: --submit writes a file; give a folder", code=USAGE)
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
        raise SetrError(
            f"-o {out}: names a file; give a folder, in which results are named after the images "
            "(from Python, result.save writes one file)",
            code=USAGE,
        )


def _check_live(given: Arguments, streams: list[Stream], others: int) -> None:
    """Refuse a live source beside other inputs, which would wait for its end."""
    live = next((stream.shown for stream in streams if stream.is_live), None)
    if live is None:
        rule = "only a live source, such as a camera, has no end of its own; leave it out"
        require_default(given, rule, "seconds")
        return
    if len(streams) + others > 1:
        raise SetrError(
            f"{live}: a live source runs alone; start one command for it and another for files",
            code=USAGE,
        )
    rule = f"does nothing with a live source ({live}); leave it out"
    require_default(given, rule, "shard", "pack", "engine", "retry")


def _check_streams(given: Arguments, streams: list[Stream], *, remote: bool) -> None:
    """Refuse streams where only images will do, and GeoTIFF files beside options for images."""
    from setr.reading.urls import is_url

    if streams and (given.submit or remote):
        what = "--submit takes images" if given.submit else f"{given.out}: takes images"
        raise SetrError(f"{what}, not {streams[0].shown}", code=USAGE)
    maps = [s.source for s in streams if not s.is_video and not is_url(s.source)]
    if maps:
        rule = (
            f"resizes or mirrors images, and {maps[0]} is a GeoTIFF file, whose pixels keep their "
            "size on the ground; leave one out (--window sets its windows)"
        )
        require_default(given, rule, "protocol", "scales", "flip")


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise SetrError(f"--shard {text}: give i/n with i from 0 to n - 1, as 0/4", code=USAGE)
