"""Predict any number of images: decode | model | encode at the same time, in bounded memory.

Threads decode ahead and write behind while the calling thread runs the model, so that the model
never waits for files. Images of one size share passes of the model where that does not change a bit
(`passes.py`), so results do not depend on order, neighbours, `--shard`, a restart or the engine.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from setr.bands import Bands, read_pixels
from setr.errors import SetrError
from setr.prediction.inputs import Item, read_item
from setr.prediction.kinds import KINDS, options_of
from setr.prediction.outputs import with_ending
from setr.prediction.passes import BATCH_PIXELS, Batches, attempt
from setr.prediction.streams import Stream, predict_stream
from setr.predictor import Predictor
from setr.processes.faults import is_out_of_memory
from setr.processes.interrupt import Interrupt
from setr.processes.progress import Progress
from setr.reading.pillow import MAX_PIXELS
from setr.reading.storage import Storage
from setr.result import Result
from setr.writing import NameRefusedError

BATCH = 8
"""Images per pass of the model."""
AHEAD_BYTES = 512 << 20
"""Decoded images held before and behind the model, as far as one image leaves the choice."""


class Task(NamedTuple):
    """One image and where its outputs go: a name below the output folder, without ending."""

    item: Item
    output: str


class Outcome(NamedTuple):
    """The outcome of one image.

    Attributes:
        row: its line in the manifest.
        files: encoded outputs that are still to be packed, by name.
        text: the result, or the error, in one line.
    """

    row: dict[str, Any]
    files: dict[str, bytes]
    text: str


@dataclass(frozen=True)
class OutputWriter:
    """Turns a result into files and a row of the manifest; thread-safe and picklable.

    Args:
        kinds: what to write, of `kinds.KINDS`.
        run: name of the run, from its model and settings.
        packed: return the encoded files, to be packed, instead of writing them.
        options: of `kinds.OPTIONS`; each is for the kinds that have it.
    """

    out: str
    kinds: tuple[str, ...]
    run: str
    packed: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _storage(self) -> Storage:
        return Storage(self.out)

    def __call__(self, task: Task, result: Result | SetrError) -> Outcome:
        """Encode the outputs, and write them unless they are packed."""
        if isinstance(result, SetrError):
            return self.failed(task, result)
        files = {}
        for kind in self.kinds:
            name = self.name(task.output, kind)
            folder = os.path.dirname(self._storage.path(name))
            files[name] = result.encode(kind, folder=folder, **options_of(kind, self.options))
        if not self.packed:
            try:
                for name, data in files.items():
                    self._storage.write(name, data)
            except NameRefusedError as error:  # of this image alone
                return self.failed(task, error)
        height, width = result.mask.shape
        row = {
            **row_of(task, "ok", self.run),
            "files": list(files),
            "width": width,
            "height": height,
            "classes": {name: round(float(share), 6) for name, share in result.shares.items()},
        }
        return Outcome(row, files if self.packed else {}, repr(result))

    def failed(self, task: Task, error: SetrError) -> Outcome:
        """The outcome of an image that failed."""
        text = str(error)
        if task.item.part is not None or task.item.place not in text:
            text = f"{task.item.shown}: {text.removeprefix('image data: ')}"
        return Outcome({**row_of(task, "failed", self.run), "error": text}, {}, text)

    def name(self, output: str, kind: str) -> str:
        """File name of one kind; in a pack, with the ending webdataset expects after its key."""
        if self.packed:
            return f"{output}.{kind}{PurePosixPath(f'_{KINDS[kind]}').suffix}"
        return with_ending(Path(output), KINDS[kind]).as_posix()


def row_of(task: Task, status: str, run: str) -> dict[str, Any]:
    """The fields that every row of the manifest has."""
    item = task.item
    return {
        "name": item.name,
        "input": item.shown,
        "status": status,
        "run": run,
        "stamp": item.stamp,
        "output": task.output,
    }


def outcomes(
    predictor: Predictor,
    tasks: Iterable[Task],
    finish: Callable[[Task, Result | SetrError], Outcome],
    *,
    batch: int = BATCH,
    exact: bool = True,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    scores: bool = False,
) -> Iterator[Outcome]:
    """Run every task; each yields exactly one outcome, in an order that depends on tasks alone.

    Args:
        finish: encodes (and writes) a result, or records why there is none; called in threads.
        batch: images of one size per pass of the model.
        exact: batch only where results are those of one by one. Otherwise every forward pass has
            `batch` images, padded with black ones, so that results do not depend on the neighbours.
        workers: threads that decode, and as many that encode.
        max_pixels: larger images are refused from their header.
        scores: outputs need the class probabilities, which are computed in the calling thread.
    """
    model = Batches(predictor, batch, exact)
    with (
        ThreadPoolExecutor(workers, "decode") as readers,
        ThreadPoolExecutor(workers, "encode") as writers,
    ):
        writing: deque[Future[Outcome]] = deque()
        groups: dict[tuple[int, ...], list[tuple[Task, np.ndarray]]] = {}
        held = largest = 0

        def write(group: list[tuple[Task, np.ndarray]]) -> None:
            results = model.run([image for _, image in group])
            for (task, _), found in zip(group, results, strict=True):
                if isinstance(found, Result):
                    found.path = found.path or task.item.path
                    found.name = task.item.name
                    if scores:  # here, because they need the model
                        computed = attempt(partial(getattr, found, "scores"), found.mask.shape)
                        found = computed if isinstance(computed, SetrError) else found
                writing.append(writers.submit(finish, task, found))

        def written(limit: int) -> Iterator[Outcome]:
            # finished ones are yielded at once, so that a stop loses none of them
            while len(writing) > limit or (writing and writing[0].done()):
                yield writing.popleft().result()

        def room() -> int:
            return max(1, min(2 * workers + batch, AHEAD_BYTES // max(largest, 1)))

        bands = getattr(predictor, "bands", None)
        for task, image in _decoded(tasks, readers, room, max_pixels, bands):
            if isinstance(image, SetrError):
                writing.append(writers.submit(finish, task, image))
            else:
                largest = max(largest, image.nbytes)
                group = groups.setdefault(image.shape, [])
                group.append((task, image))
                held += image.nbytes
                if len(group) == batch or image.shape[0] * image.shape[1] > BATCH_PIXELS:
                    held -= sum(i.nbytes for _, i in groups.pop(image.shape))
                    write(group)
                while held > AHEAD_BYTES:
                    oldest = groups.pop(next(iter(groups)))
                    held -= sum(i.nbytes for _, i in oldest)
                    write(oldest)
            yield from written(room())
        for group in groups.values():
            write(group)
            yield from written(room())
        yield from written(0)


def stream_outcomes(
    predictor: Predictor,
    streams: Mapping[Task, Stream],
    writer_for: Callable[[Stream], OutputWriter],
    stop: Interrupt,
    *,
    seconds: float = math.inf,
) -> Iterator[Outcome]:
    """Segment videos, GeoTIFF files, cameras and addresses; files are written, never packed.

    Args:
        streams: by task.
        writer_for: what writes the results of a stream.
        stop: interrupts the current stream, of which no output is then left; a live source ends
            with the current frame, and its outputs are complete.
        seconds: of a live source.

    Raises:
        Stopped: by a signal.
    """
    for task, stream in streams.items():
        writer = writer_for(stream)
        out = Path(writer.out)
        try:
            at_once = nullcontext() if stream.is_live else stop.at_once()
            with at_once, Progress(os.path.basename(stream.shown), 0) as progress:
                files, text, facts = predict_stream(
                    predictor,
                    stream,
                    out / task.output,
                    writer.kinds,
                    on_frame=progress.count,
                    limits={"until": lambda: stop.requested, "seconds": seconds},
                    **writer.options,
                )
        except SetrError as error:
            yield writer.failed(task, error)
            continue
        names = [str(file.relative_to(out)) for file in files]
        yield Outcome({**row_of(task, "ok", writer.run), "files": names, **facts}, {}, text)


def _decoded(
    tasks: Iterable[Task],
    readers: ThreadPoolExecutor,
    room: Callable[[], int],
    max_pixels: int,
    bands: Bands | None,
) -> Iterator[tuple[Task, np.ndarray | SetrError]]:
    """Images in the order of the tasks, decoded ahead."""
    waiting: deque[tuple[Task, Future[np.ndarray | SetrError]]] = deque()
    for task in tasks:
        waiting.append((task, readers.submit(_decode, task.item, max_pixels, bands)))
        while len(waiting) > room():
            first, image = waiting.popleft()
            yield first, image.result()
    for task, image in waiting:
        yield task, image.result()


def _decode(item: Item, max_pixels: int, bands: Bands | None) -> np.ndarray | SetrError:
    try:
        return read_pixels(read_item(item), bands, max_pixels=max_pixels)
    except SetrError as error:
        return error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return SetrError(f"{item.shown}: does not fit into memory; lower --max-pixels")
