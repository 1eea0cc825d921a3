"""`setr predict MODEL IMAGES… -o OUT`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from setr.arguments.choices import Precision, ServerName
from setr.cli import parse, require_at_least, require_default, require_within
from setr.commands.shared import Device, Flip, Model, Scales
from setr.errors import OK, USAGE, SetrError
from setr.images import MAX_PIXELS
from setr.processes.quota import cpus

if TYPE_CHECKING:
    from setr.batch import Outcome, OutputWriter, Task
    from setr.prediction.inputs import Item
    from setr.prediction.streams import Stream
    from setr.processes.interrupt import Interrupt
    from setr.reading.storage import Storage

Engine = Callable[[Sequence["Task"]], Iterator["Outcome"]]
NOT_SUBMITTED = (
    *("save", "tolerance", "min_pixels", "bands", "value_range"),
    *("pack", "pack_samples", "manifest", "retry", "shard"),
    *("batch", "exact", "workers", "engine", "actors"),
)
"""Options without effect on `--submit`."""
LATER = ("scales", "flip", "min_confidence")
"""Options that enter a run's name only where they are given, so that older names stay valid."""


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
    tar shards, Parquet files, or addresses of images and archives for fsspec (s3://…)."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder or fsspec address for the results, named after the images (a.png and a.jpg give
    a.png.png, a.jpg.png); the layout of a walked folder is kept."""
    save: str | None = None
    """What to write, joined with commas: mask (palette PNG of ids; GeoTIFF of a GeoTIFF), ids (grey
    PNG), color, overlay, confidence, scores, share, geojson, coco, coco_rle, labelme. By default
    mask, and of a video overlay."""
    tolerance: float = 0.0
    """Polygons may leave out corners where that moves the outline by at most so many pixels."""
    min_pixels: int = 1
    """Polygons of smaller regions are left out."""
    min_confidence: float = 0.0
    """Pixels whose class is less probable, 0 to 1, are unlabelled: 255 in masks, black in colours,
    in no polygon."""
    protocol: str | None = None
    """paper-ss, paper-ms, mmseg-ss, mmseg-ms or whole, as in `setr eval`; the model's own if not
    given. Neither this nor --scales nor --flip is for GeoTIFF files, which are run as they are."""
    scales: Scales = None
    flip: Flip = False
    window: int | None = None
    """Run images by blended windows of so many pixels, whatever the model's protocol."""
    bands: str = ""
    """Bands of a GeoTIFF shown as red, green and blue, such as 4,3,2; by default the first. Of a
    model that was trained on bands, those of every file; by default its own."""
    value_range: str = ""
    """Values of these files that become 0 and 255, such as 0,3000; by default the model's, else the
    whole range of 8 and 16 bits."""
    allow_urls: bool = False
    """Download images named by http(s) addresses."""
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
    _check_options(given)
    from setr.batch import Task
    from setr.prediction.inputs import output_names
    from setr.prediction.settled import stream_tasks
    from setr.reading.storage import Storage

    storage, shard = Storage(given.out), _shard(given.shard)
    streams, items = _inputs(given)
    _check_streams(given, streams, remote=storage.remote)
    if given.submit:
        return _submit(given, items)
    names = output_names(items, packed=given.pack != "no")
    tasks = [Task(item, name) for item, name in zip(items, names, strict=True)]
    return _predict(given, storage, tasks, stream_tasks(streams, Path(given.out), names), shard)


def _check_options(given: Arguments) -> None:
    """Refuse values out of range, and options that have no effect beside the others."""
    from setr.prediction.polygons import LARGEST_TOLERANCE
    from setr.prediction.rasters import parse_bands, parse_range
    from setr.protocols import Protocol, preset
    from setr.reading.storage import is_address

    require_at_least(given, 1, "pack_samples", "batch", "workers", "actors", "window", "max_pixels")
    require_at_least(given, 0, "min_pixels")
    require_within(given, 0, LARGEST_TOLERANCE, "tolerance")
    require_within(given, 0, 1, "min_confidence")
    parse_bands(given.bands)
    parse_range(given.value_range)
    named = preset(given.protocol) if given.protocol else Protocol()
    named.overridden(scales=given.scales)
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


def _inputs(given: Arguments) -> tuple[list[Stream], list[Item]]:
    """The streams and images that the command line names, without results of earlier runs."""
    from setr.prediction.inputs import find_items
    from setr.prediction.streams import split_sources
    from setr.reading.storage import result_test

    is_result = result_test(given.out)
    found, rest = split_sources(given.images)
    streams = [stream for stream in found if not is_result(str(stream.below), stream.source)]
    special = {os.path.normpath(stream.source) for stream in found}
    items = [
        item
        for item in find_items(rest)
        if os.path.normpath(item.place) not in special and not is_result(item.name, item.place)
    ]
    if not streams and not items:
        raise SetrError(f"{given.images[0]}: no images found outside {given.out}", code=USAGE)
    return streams, items


def _check_streams(given: Arguments, streams: list[Stream], *, remote: bool) -> None:
    """Refuse streams where only images will do, and GeoTIFF files beside options for images."""
    from setr.reading.urls import is_url

    if streams and (given.submit or remote):
        what = "--submit takes images" if given.submit else f"{given.out}: takes images"
        raise SetrError(f"{what}, not {streams[0].source}", code=USAGE)
    maps = [s.source for s in streams if not s.is_video and not is_url(s.source)]
    if maps:
        rule = (
            f"resizes or mirrors images, and {maps[0]} is a GeoTIFF file, whose pixels keep their "
            "size on the ground; leave one out (--window sets its windows)"
        )
        require_default(given, rule, "protocol", "scales", "flip")


def _predict(
    given: Arguments,
    storage: Storage,
    tasks: list[Task],
    streams: dict[Task, Stream],
    shard: tuple[int, int],
) -> int:
    """Run all tasks that are not up to date, and record every outcome in the manifest."""
    from setr.prediction import tally
    from setr.prediction.inputs import check_outputs, in_shard
    from setr.prediction.manifest import Manifest, write_parquet
    from setr.prediction.packs import Packer
    from setr.prediction.settled import files_of, output_writers, run_names, settled
    from setr.processes.interrupt import Interrupt, Stopped

    limits = {name: getattr(given, name) for name in ("max_pixels", "allow_urls", "device")}
    suffix = "" if shard == (0, 1) else f"-{shard[0]}-of-{shard[1]}"
    stem, packs = f"manifest{suffix}", f"part{suffix}"
    settings = [given.precision, given.protocol, given.window, given.pack]
    chosen = {name: value for name in LATER if (value := getattr(given, name))}
    by_bands = [given.bands, given.value_range]
    writer_for = output_writers(
        given.out,
        given.save,
        run_names(given.model),
        [
            *(*settings, None if given.exact else given.batch),
            *filter(None, by_bands),
            *([chosen] if chosen else ()),
        ],
        by_bands,
        packed=given.pack != "no",
        polygons={"tolerance": given.tolerance, "min_pixels": given.min_pixels},
    )
    check_outputs(
        ((task.item, files_of(task, streams.get(task), writer_for)) for task in (*streams, *tasks)),
        [f"{stem}.parquet", *(storage.names(f"{packs}-") if given.pack != "no" else ())],
        storage,
    )
    streams = {task: stream for task, stream in streams.items() if in_shard(task.item, shard)}
    tasks = [*streams, *(task for task in tasks if in_shard(task.item, shard))]
    stop = Interrupt()
    run_images, run_streams = _engines(given, writer_for, streams, stop)
    runs = {task: writer_for(streams.get(task)).run for task in tasks}
    is_settled = settled(runs, storage, limits, retry=given.retry)
    with Manifest(storage, stem, is_settled) as manifest, stop:
        todo = [task for task in tasks if task.item.name not in manifest.done]
        images = [task for task in todo if task not in streams]
        tally.print_resumed(manifest, len(tasks), len(todo))
        packer = Packer(storage, manifest, given.pack, stem=packs, samples=given.pack_samples)
        broken: list[str] = []
        progress = tally.progress(len(tasks), len(tasks) - len(todo), quiet=given.json)
        with progress as show, contextlib.suppress(Stopped):
            for outcome in chain(
                run_streams([task for task in todo if task in streams]),
                run_images(images) if images else (),
            ):
                if outcome.row["status"] == "failed":
                    outcome.row["limits"] = limits
                    broken.append(outcome.text)
                packer.add(outcome)
                show(outcome)
                if stop.requested:
                    break
        packer.flush()
        if given.manifest == "parquet" and not stop.requested:
            write_parquet(manifest)
        if given.json:
            print(json.dumps(tally.as_json(tasks, manifest)))
        return tally.print_summary(tasks, manifest, broken)


def _engines(
    given: Arguments,
    writer_for: Callable[[Stream | None], OutputWriter],
    streams: dict[Task, Stream],
    stop: Interrupt,
) -> tuple[Engine, Engine]:
    """Functions that run images and streams; a model that cannot be loaded fails here."""
    from setr.batch import outcomes, stream_outcomes
    from setr.predictor import load

    writer = writer_for(None)
    options: dict[str, Any] = {
        "batch": given.batch,
        "exact": given.exact,
        "workers": given.workers,
        "max_pixels": given.max_pixels,
        "scores": "scores" in writer.kinds,
    }
    loading = _loading(given)
    on_ray = given.engine == "ray"
    predictor: Any = None if on_ray and not streams else load(given.model, **loading)

    def run_streams(tasks: Sequence[Task]) -> Iterator[Outcome]:
        return stream_outcomes(predictor, {task: streams[task] for task in tasks}, writer_for, stop)

    if on_ray:
        import torch

        from setr.prediction.batch_ray import Work, ray_outcomes

        work = Work(given.model, loading, options, writer, torch.get_num_threads())
        return (lambda tasks: ray_outcomes(work, tasks, actors=given.actors)), run_streams
    return (lambda tasks: outcomes(predictor, tasks, writer, **options)), run_streams


def _loading(given: Arguments) -> dict[str, Any]:
    """Keywords of `setr.load`."""
    from setr.prediction.rasters import parse_bands, parse_range

    names = ("device", "precision", "max_pixels", "protocol", "window", "allow_urls", *LATER)
    by_bands = {"bands": parse_bands(given.bands), "value_range": parse_range(given.value_range)}
    return {name: getattr(given, name) for name in names} | by_bands


def _submit(given: Arguments, items: Sequence[Item]) -> int:
    """One zip file for a test server, which refuses a submission with holes."""
    from setr.prediction.inputs import read_item
    from setr.predictor import load
    from setr.reading.files import printable
    from setr.scores.submissions import Submission, check_submission

    assert given.submit is not None
    predictor = load(given.model, **_loading(given))
    path = Path(given.out) / f"{given.submit}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Submission(given.submit, path, predictor.info.labels) as submission:
        for done, item in enumerate(items, 1):
            result = predictor.predict(read_item(item))
            submission.add(os.path.basename(item.name), result.mask)
            if not given.json:
                print(printable(f"{done}/{len(items)}  {item.shown}  {result!r}"))
    count = check_submission(given.submit, path)
    if given.json:
        names = [{"image": item.shown, "files": [str(path)]} for item in items]
        print(json.dumps({"images": names, "failed": 0}))
    print(f"setr: {path}: {count} predictions, checked against the server's rules", file=sys.stderr)
    return OK


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise SetrError(f"--shard {text}: give i/n with i from 0 to n - 1, as 0/4", code=USAGE)
