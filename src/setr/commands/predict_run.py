"""What `setr predict` does once its arguments are known to be right."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from setr.batch import Outcome, OutputWriter, Task, outcomes, stream_outcomes
from setr.commands.predict_arguments import Arguments
from setr.commands.shared import mirrored
from setr.distributed import gpu_out_of_reach, place_name, say
from setr.errors import OK, UsageError
from setr.exporting.runtime import ExportedModel
from setr.layers.precision import precision_name
from setr.loading import load
from setr.prediction import tally
from setr.prediction.chosen import chosen_ids
from setr.prediction.inputs import Item, find_items, in_shard, output_names, read_item
from setr.prediction.kinds import OPACITY
from setr.prediction.manifest import Manifest, write_parquet
from setr.prediction.output_check import check_outputs
from setr.prediction.outputs import parse_kinds
from setr.prediction.packs import Packer
from setr.prediction.rasters import parse_bands, parse_range
from setr.prediction.settled import files_of, run_names, settled, stream_tasks
from setr.prediction.streams import Stream, split_sources
from setr.prediction.video import VIDEO_SUFFIXES
from setr.predictor import Predictor
from setr.processes.interrupt import Interrupt, Stopped
from setr.processes.standard_streams import tell
from setr.reading.files import expanded, one_line
from setr.reading.storage import Storage, result_test
from setr.scores.submissions import TEST_IMAGES, Submission, check_submission
from setr.writing import make_folder

LATER = ("scales", "flip", "no_flip", "min_confidence", "short_side")
"""Options that enter a run's name only where they are given, so that older names stay valid."""
LIMITS = ("max_pixels", "allow_urls", "device")
"""Options that decide which images fail."""

Engine = Callable[[Sequence[Task]], Iterator[Outcome]]
WriterOf = Callable[[Stream | None], OutputWriter]


def find_inputs(given: Arguments) -> tuple[list[Stream], list[Item]]:
    """The streams and images that the command line names, without results of earlier runs.

    Raises:
        SetrError: there are none.
    """
    is_result = result_test(given.out)
    found, rest = split_sources(given.images)
    _tell_of_videos(rest, {stream.source for stream in found}, is_result)
    streams = [stream for stream in found if not is_result(str(stream.below), stream.source)]
    special = {os.path.normpath(stream.source) for stream in found}
    items = [
        item
        for item in find_items(rest)
        if os.path.normpath(item.place) not in special and not is_result(item.name, item.place)
    ]
    if not streams and not items:
        raise UsageError(f"{given.images[0]}: no images found outside {given.out}")
    return streams, items


def _tell_of_videos(
    sources: Sequence[str], named: set[str], is_result: Callable[[str, str], bool]
) -> None:
    """Say which videos in folders are left out; most people mean the pictures of a folder."""
    for folder in filter(os.path.isdir, sources):
        videos = [
            path
            for path, name in expanded(folder, VIDEO_SUFFIXES)
            if str(Path(path)) not in named and not is_result(name, path)
        ]
        if videos:
            what = "a video" if len(videos) == 1 else f"{len(videos)} videos"
            tell(
                one_line(
                    f"setr: {folder}: {what} in this folder left out, such as {videos[0]}; a video "
                    "is segmented if you name it, or a quoted glob such as 'FOLDER/*.mp4'"
                )
            )


def predict(
    given: Arguments,
    found: Sequence[Stream],
    items: Sequence[Item],
    storage: Storage,
    shard: tuple[int, int],
) -> int:
    """Run all tasks that are not up to date, and record every outcome in the manifest."""
    suffix = "" if shard == (0, 1) else f"-{shard[0]}-of-{shard[1]}"
    stem, packs = f"manifest{suffix}", f"part{suffix}"
    names = output_names(items, packed=given.pack != "no")
    images = [Task(item, name) for item, name in zip(items, names, strict=True)]
    streams = stream_tasks(found, names)
    writer_for = _writers(given)
    check_outputs(
        (
            (task.item, files_of(task, streams.get(task), writer_for))
            for task in (*streams, *images)
        ),
        [f"{stem}.parquet", *(storage.names(f"{packs}-") if given.pack != "no" else ())],
        storage,
    )
    streams = {task: stream for task, stream in streams.items() if in_shard(task.item, shard)}
    tasks = [*streams, *(task for task in images if in_shard(task.item, shard))]
    stop = Interrupt()
    run_tasks = _engine(given, writer_for, streams, stop)
    runs = {task: writer_for(streams.get(task)).run for task in tasks}
    limits = {name: getattr(given, name) for name in LIMITS}
    is_settled = settled(runs, storage, limits, retry=given.retry)
    with Manifest(storage, stem, is_settled) as manifest, stop:
        todo = [task for task in tasks if task.item.name not in manifest.done]
        tally.print_resumed(manifest, len(tasks), len(todo))
        packer = Packer(storage, manifest, given.pack, stem=packs, samples=given.pack_samples)
        with tally.progress(len(tasks), len(tasks) - len(todo), quiet=given.json) as show:
            broken = _record(run_tasks(todo), packer, limits, show, stop)
        packer.flush()
        if given.manifest == "parquet" and not stop.requested:
            write_parquet(manifest)
        if given.json:
            print(json.dumps(tally.as_json(tasks, manifest)))
        cut = stop.requested and any(stream.is_live for stream in streams.values())
        return tally.print_summary(tasks, manifest, broken, cut=cut)


def _writers(given: Arguments) -> WriterOf:
    """What writes the results of a stream, or of images for None."""
    run_name, options = run_names(given.model), _output_options(given)
    by_bands = [given.bands, given.value_range]
    settings: list[Any] = [given.precision, given.protocol, given.window, given.pack]
    settings += [None if given.exact else given.batch, *filter(None, by_bands)]
    if chosen := {name: value for name in LATER if (value := getattr(given, name))}:
        settings.append(chosen)

    def writer(default: str, *more: Any) -> OutputWriter:
        kinds = parse_kinds(given.save or default)
        run = run_name([sorted(kinds), options, *settings, *more])
        return OutputWriter(given.out, kinds, run, given.pack != "no", options)

    image, video, raster = writer("mask"), writer("overlay"), writer("mask", *by_bands)
    return lambda stream: image if stream is None else video if stream.is_video else raster


def _output_options(given: Arguments) -> dict[str, Any]:
    """Options of kinds. Opacity and classes enter a run's name only if they are given."""
    found: dict[str, Any] = {"tolerance": given.tolerance, "min_pixels": given.min_pixels}
    found |= {} if given.opacity == OPACITY else {"opacity": given.opacity}
    return {**found, "classes": given.classes} if given.classes else found


def _record(
    found: Iterable[Outcome],
    packer: Packer,
    limits: dict[str, Any],
    show: Callable[[Outcome], None],
    stop: Interrupt,
) -> list[str]:
    """Pack and show outcomes until the last one or a stop; returns the errors."""
    broken: list[str] = []
    with contextlib.suppress(Stopped):
        for outcome in found:
            if outcome.row["status"] == "failed":
                outcome.row["limits"] = limits
                broken.append(outcome.text)
            if "ended" in outcome.row:
                broken.append(f"{outcome.row['input']}: {outcome.row['ended']}")
            packer.add(outcome)
            show(outcome)
            if stop.requested:
                break
    return broken


def _engine(
    given: Arguments, writer_for: WriterOf, streams: Mapping[Task, Stream], stop: Interrupt
) -> Engine:
    """What runs tasks, streams first; a model that cannot be loaded fails here."""
    on_ray = given.engine == "ray"
    predictor = None if on_ray and not streams else load(given.model, **_loading(given))
    if predictor is not None:
        _tell_of_place(predictor, given.device)
    if given.classes:  # fail before images are read
        chosen_ids(given.classes, (predictor or load(given.model, device="cpu")).classes)
    writer = writer_for(None)
    run_images = _ray(given, writer) if on_ray else _plain(given, writer, predictor)

    def run(tasks: Sequence[Task]) -> Iterator[Outcome]:
        films = {task: streams[task] for task in tasks if task in streams}
        if predictor is not None:
            seconds = math.inf if given.seconds is None else given.seconds
            yield from stream_outcomes(predictor, films, writer_for, stop, seconds=seconds)
        if len(films) < len(tasks):
            yield from run_images([task for task in tasks if task not in films])

    return run


def _tell_of_place(predictor: Predictor, device: str) -> None:
    """Say where a model runs and in which precision; an exported file has its own."""
    if isinstance(predictor.model, ExportedModel):
        return
    say(f"setr: predicting on {place_name(predictor.device)} in {precision_name(predictor.dtype)}")
    if device == "auto" and (why := gpu_out_of_reach()):
        say(f"setr: warning: {why}")


def _plain(given: Arguments, writer: OutputWriter, predictor: Any) -> Engine:
    return lambda tasks: outcomes(predictor, tasks, writer, **_pace(given, writer))


def _ray(given: Arguments, writer: OutputWriter) -> Engine:
    import torch

    from setr.prediction.batch_ray import Work, ray_outcomes

    pace = _pace(given, writer)
    work = Work(given.model, _loading(given), pace, writer, torch.get_num_threads())
    return lambda tasks: ray_outcomes(work, tasks, actors=given.actors)


def _pace(given: Arguments, writer: OutputWriter) -> dict[str, Any]:
    """Keywords of `outcomes`."""
    names = ("batch", "exact", "workers", "max_pixels")
    return {name: getattr(given, name) for name in names} | {"scores": "scores" in writer.kinds}


def _loading(given: Arguments) -> dict[str, Any]:
    """Keywords of `setr.load`."""
    names = ("device", "precision", "max_pixels", "protocol", "window", "allow_urls", "scales",
             "min_confidence", "short_side")  # fmt: skip
    return {name: getattr(given, name) for name in names} | {
        "flip": mirrored(flip=given.flip, no_flip=given.no_flip),
        "bands": parse_bands(given.bands),
        "value_range": parse_range(given.value_range),
    }


def submit(given: Arguments, items: Sequence[Item]) -> int:
    """One zip file for a test server, which refuses a submission with holes."""
    assert given.submit is not None
    predictor = load(given.model, **_loading(given))
    _tell_of_place(predictor, given.device)
    wanted = TEST_IMAGES[given.submit]
    if len(items) != wanted:
        images = f"{len(items):,} image{'s' if len(items) > 1 else ''}"
        tell(
            f"setr: warning: {images}, but the test split of {given.submit} has {wanted:,}, and "
            "the server wants each of them once"
        )
    path = Path(given.out) / f"{given.submit}.zip"
    make_folder(path.parent)
    with Submission(given.submit, path, predictor.info.labels) as submission:
        for done, item in enumerate(items, 1):
            result = predictor.predict(read_item(item))
            submission.add(os.path.basename(item.name), result.mask)
            if not given.json:
                print(one_line(f"{done}/{len(items)}  {item.shown}  {result!r}"))
    count = check_submission(given.submit, path)
    if given.json:
        names = [{"image": item.shown, "files": [str(path)]} for item in items]
        print(json.dumps({"images": names, "failed": 0}))
    tell(f"setr: {path}: {count} predictions, checked against the server's rules")
    return OK
