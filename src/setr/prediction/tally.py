"""What a prediction run prints: progress, failures, a summary, and the outcomes as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from setr.batch import Outcome, Task
from setr.errors import FAILED, INTERRUPTED, OK
from setr.prediction.manifest import Manifest
from setr.processes.progress import Progress
from setr.processes.standard_streams import tell
from setr.reading.files import one_line

FACTS = ("frames", "dropped", "reconnects", "ended")
"""Entries of a video's row that JSON has, too."""
LINES = 100
"""Up to this many images each get a line on stdout, more share one progress line on stderr."""


def print_resumed(manifest: Manifest, total: int, todo: int) -> None:
    """Print how much an earlier run has done."""
    if manifest.dropped:
        tell(f"setr: {manifest.dropped} outcomes are outdated; done again")
    if todo < total:
        tell(f"setr: {total - todo} of {total} images were done before")


@contextlib.contextmanager
def progress(total: int, before: int, *, quiet: bool) -> Iterator[Callable[[Outcome], None]]:
    """A function that shows one outcome, as a line or as a step of a progress bar."""
    done, bar = before, Progress("predict", total, start=before)

    def show(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if total > LINES:
            bar.update(done, images=1)
        elif not quiet and outcome.row["status"] == "ok":
            print(one_line(f"{done}/{total}  {outcome.row['input']}  {outcome.text}"))

    with bar:
        yield show


def as_json(tasks: Sequence[Task], manifest: Manifest) -> dict[str, Any]:
    """The outcomes of these tasks in their order, for JSON."""
    names = {task.item.name for task in tasks}
    rows = {row["name"]: row for row in manifest.rows() if row["name"] in names}
    images = []
    for row in (rows[task.item.name] for task in tasks if task.item.name in rows):
        files = [row["pack"][0]] if "pack" in row else row.get("files", [])
        what: dict[str, Any] = {"files": [manifest.storage.path(file) for file in files]}
        what |= {key: row[key] for key in FACTS if key in row}
        images.append(
            {"image": row["input"]} | ({"error": row["error"]} if "error" in row else what)
        )
    failed = sum("error" in image for image in images)
    return {"images": images, "failed": failed, "manifest": manifest.storage.path(manifest.file)}


def print_summary(
    tasks: Sequence[Task], manifest: Manifest, broken: Sequence[str], *, cut: bool = False
) -> int:
    """Print what failed and how much is left; returns the exit code.

    Args:
        broken: messages on what failed.
        cut: a live source was stopped by a signal.
    """
    for problem in broken[:LINES]:
        tell(f"setr: {one_line(problem)}")
    if len(broken) > LINES:
        tell(f"setr: … and {len(broken) - LINES} more")
    states = [manifest.done.get(task.item.name) for task in tasks]
    failed, left = states.count(False), states.count(None)
    where = manifest.storage.path(manifest.file)
    if failed:
        tell(f"setr: {failed} of {len(tasks)} images failed; {where} says why")
    if left:
        tell(f"setr: stopped; {left} images are left; run the same command again")
        return INTERRUPTED
    if failed or broken:
        return FAILED
    if cut:
        tell("setr: stopped; all that was recorded is saved")
    return INTERRUPTED if cut else OK
