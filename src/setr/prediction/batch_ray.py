"""Prediction by Ray: actors on the machines of a cluster, one model in each (extra `ray`).

Ray Data streams the tasks to a pool of actors, which read the images and write the outputs
themselves; only rows of the manifest (and outputs to be packed) come back to the process that
started the run and is the only one that writes the manifest. Each actor runs `batch.outcomes`, with
as many threads per pass as that process would use, because fp32 sums depend on their number; so the
files are those of one process, bit for bit. With several machines, inputs, outputs and the model
must be where all of them can reach them: a shared file system or object storage.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from setr._extras import import_extra
from setr.batch import Outcome, OutputWriter, Task, outcomes
from setr.errors import SetrError, first_line
from setr.loading import load
from setr.prediction.inputs import Item

CHUNK = 256
"""Tasks an actor takes at a time, at most."""


@dataclass(frozen=True)
class Work:
    """Settings of every actor.

    Args:
        model: as `setr.load` takes it.
        load: further keywords of `setr.load`.
        outcomes: keywords of `batch.outcomes`.
        writer: turns results into files.
        threads: torch's, per pass of the model.
    """

    model: str
    load: dict[str, Any]
    outcomes: dict[str, Any]
    writer: OutputWriter
    threads: int


def ray_outcomes(work: Work, tasks: Sequence[Task], *, actors: int | None) -> Iterator[Outcome]:
    """As `batch.outcomes`, by a pool of actors; the order may differ.

    Args:
        actors: size of the pool; one per GPU, or one per `threads` processors if not given.

    Raises:
        SetrError: Ray is missing or cannot start, the model cannot be loaded, or an actor died more
            often than Ray restarts it.
    """
    ray = import_extra("ray", "ray", "--engine ray")
    with _cluster(ray):
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        on_gpu = gpus > 0 and work.load["device"] in ("auto", "cuda")
        actors = actors or (gpus if on_gpu else max(1, cpus // work.threads))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        chunk = max(1, min(CHUNK, len(tasks) // (4 * actors)))
        lines = [{"task": json.dumps(task)} for task in tasks]
        done = ray.data.from_items(lines, override_num_blocks=-(-len(tasks) // chunk)).map_batches(
            _Actor,
            fn_constructor_args=(asdict(work),),
            batch_size=chunk,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(tasks))),
            num_cpus=0 if on_gpu else max(1, min(work.threads, cpus // actors)),
            num_gpus=1 if on_gpu else 0,
        )
        try:
            for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
                for line in table.to_pylist():
                    files = dict(zip(line["names"], line["files"], strict=True))
                    yield Outcome(json.loads(line["row"]), files, json.loads(line["text"]))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            raise SetrError(str(cause) if cause else f"ray: {first_line(error)}") from None


class _Actor:
    """One model, and a pipeline around it for every chunk of tasks."""

    def __init__(self, work: dict[str, Any]) -> None:
        torch.set_num_threads(work["threads"])
        self.writer = OutputWriter(**work["writer"])
        self.options = work["outcomes"]
        self.predictor = load(work["model"], **work["load"])

    def __call__(self, chunk: Any) -> Iterator[Any]:
        import pyarrow as pa

        given = [json.loads(line) for line in chunk["task"].to_pylist()]
        tasks = [Task(_item(*item), output) for item, output in given]
        for done in outcomes(self.predictor, tasks, self.writer, **self.options):
            yield pa.table(
                {
                    "row": [json.dumps(done.row)],
                    "text": [json.dumps(done.text)],
                    "names": pa.array([list(done.files)], pa.list_(pa.string())),
                    "files": pa.array([list(done.files.values())], pa.list_(pa.large_binary())),
                }
            )


def _item(name: str, place: str, stamp: str, part: list[int] | None) -> Item:
    return Item(name, place, stamp, (part[0], part[1]) if part else None)


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """The cluster of RAY_ADDRESS, the one that is initialised already, or this machine alone."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise SetrError(f"ray: cannot start ({first_line(error)})") from None
    try:
        yield
    finally:
        ray.shutdown()
