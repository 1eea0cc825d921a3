"""Dynamic batching: jobs of one kind from several requests run together.

One thread computes. It takes the kind whose oldest job has waited longest, so nobody starves; if
that batch is not full and its oldest job is younger than `wait`, it gives others the time to come.
Jobs whose client has gone or whose deadline has passed are dropped, before and while they run.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class DeadlinePassed(Exception):  # noqa: N818  an outcome, not a fault
    """Nobody waits for this job any more."""


@dataclass(eq=False)
class Job(Generic[Item, Answer]):
    """One item on its way through the model."""

    item: Item
    deadline: float
    """On the clock of `time.monotonic`."""
    entered: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)
    abandoned: bool = False
    """The client has gone; set from any thread."""
    waited: float = 0.0
    """Seconds in the queue."""
    computed: float = 0.0
    """Seconds in the model."""
    batch: int = 0
    """Jobs in its batch."""

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self.abandoned and time.monotonic() < self.deadline


class Run(Protocol):
    """What computes a batch: key, items, whether anybody still waits -> one answer per item.

    An answer may be an exception, which then is the outcome of that item alone.
    """

    def __call__(  # noqa: D102
        self, key: Any, items: Sequence[Any], wanted: Callable[[], bool]
    ) -> Sequence[Any]: ...


class Batcher:
    """The queue and its thread.

    Args:
        run: computes a batch, in the thread.
        size: key -> most items in one batch.
        wait: seconds the oldest job waits for company.
        observe: called in the thread after each batch with its key, jobs and seconds.
    """

    def __init__(
        self,
        run: Run,
        *,
        size: Callable[[Any], int],
        wait: float,
        observe: Callable[[Any, Sequence[Job], float], None] | None = None,
    ) -> None:
        self._run, self._size, self._wait = run, size, wait
        self._observe = observe or (lambda key, jobs, seconds: None)
        self._waiting: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._loop, name="setr-model", daemon=True)
        self._thread.start()

    def submit(self, key: Hashable, item: Any, deadline: float) -> Job:
        """Queue an item; its `future` holds the outcome.

        Raises:
            RuntimeError: closed.
        """
        job: Job = Job(item, deadline)
        with self._changed:
            if self._closing:
                raise RuntimeError("the queue is closed")
            self._waiting.setdefault(key, deque()).append(job)
            self._changed.notify()
        return job

    def __len__(self) -> int:
        with self._changed:
            return sum(len(jobs) for jobs in self._waiting.values())

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while (taken := self._take()) is not None:
            key, jobs = taken
            began = time.monotonic()
            for job in jobs:
                job.waited, job.batch = began - job.entered, len(jobs)
            try:
                outcomes = self._run(key, [job.item for job in jobs], partial(_any_wanted, jobs))
            except Exception as error:  # the thread outlives any fault; the request reports it
                outcomes = [error] * len(jobs)
            seconds = time.monotonic() - began
            for job, outcome in zip(jobs, outcomes, strict=True):
                job.computed = seconds
                if isinstance(outcome, BaseException):
                    job.future.set_exception(outcome)
                else:
                    job.future.set_result(outcome)
            self._observe(key, jobs, seconds)
            del taken, jobs, outcomes, job, outcome  # images are large: keep none while idle

    def _take(self) -> tuple[Any, list[Job]] | None:
        """The next batch; None when closed and empty."""
        with self._changed:
            while True:
                self._drop_unwanted()
                if not self._waiting:
                    if self._closing:
                        return None
                    self._changed.wait()
                    continue
                key = min(self._waiting, key=lambda k: self._waiting[k][0].entered)
                size = max(1, self._size(key))
                age = time.monotonic() - self._waiting[key][0].entered
                if len(self._waiting[key]) < size and age < self._wait and not self._closing:
                    self._changed.wait(self._wait - age)
                    continue
                jobs = self._waiting[key]
                batch = [jobs.popleft() for _ in range(min(size, len(jobs)))]
                if not jobs:
                    del self._waiting[key]
                running = [job for job in batch if job.future.set_running_or_notify_cancel()]
                if running:
                    return key, running

    def _drop_unwanted(self) -> None:
        for key in list(self._waiting):
            kept: deque[Job] = deque()
            for job in self._waiting[key]:
                if job.wanted:
                    kept.append(job)
                else:
                    self.dropped += 1
                    if job.future.set_running_or_notify_cancel():
                        job.future.set_exception(DeadlinePassed())
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key]


def _any_wanted(jobs: Sequence[Job]) -> bool:
    return any(job.wanted for job in jobs)
