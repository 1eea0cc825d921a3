"""Dynamic batching: jobs with the same key, from several requests, run as one batch.

One thread computes. It takes the key whose oldest job has waited longest, so no job starves; while
that batch is not full and its oldest job is younger than `wait`, it waits for more. Jobs that are
cancelled or past their deadline are dropped, before and while they run. The thread survives every
exception; `trouble` reports where that does not help.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from setr.errors import SetrError

MAX_FAULTS = 5
"""Batches with faults, and no answer between them, after which the device counts as broken."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class DeadlinePassed(Exception):  # noqa: N818  an outcome, not a fault
    """The client does not wait for this job any more."""


@dataclass(eq=False)
class Job(Generic[Item, Answer]):
    """One item on its way through the model."""

    item: Item
    deadline: float
    """On the clock of `time.monotonic`."""
    entered: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)
    cancelled: bool = False
    """The client has gone; set from any thread."""
    waited: float = 0.0
    """Seconds in the queue."""
    computed: float = 0.0
    """Seconds in the model."""
    batch: int = 0
    """Jobs in its batch."""

    @property
    def wanted(self) -> bool:
        """Whether the client still waits for the answer."""
        return not self.cancelled and time.monotonic() < self.deadline


class Run(Protocol):
    """Computes a batch: key, items, whether any client still waits -> one answer per item.

    An answer may be an exception, which concerns that item alone.
    """

    def __call__(  # noqa: D102
        self, key: Any, items: Sequence[Any], wanted: Callable[[], bool]
    ) -> Sequence[Any]: ...


class Batcher:
    """The queue and its thread.

    Args:
        run: computes a batch, in the thread.
        size: key -> maximum number of items in a batch.
        wait: seconds the oldest job waits for the batch to fill.
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
        self._running: Sequence[Job] = ()
        self._began: float | None = None
        self._faults = 0
        self.dropped = 0
        self.thread = threading.Thread(target=self._loop, name="setr-model", daemon=True)
        self.thread.start()

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

    def cancel(self, job: Job) -> None:
        """Drop a job; if it is still in the queue, its item is freed at once."""
        job.cancelled = True
        with self._changed:
            self._drop_unwanted()

    def __len__(self) -> int:
        with self._changed:
            return sum(len(jobs) for jobs in self._waiting.values())

    def close(self) -> None:
        """Cancel every job; the thread ends as soon as it notices."""
        with self._changed:
            self._closing = True
            for job in (*self._running, *chain.from_iterable(self._waiting.values())):
                job.cancelled = True
            self._changed.notify()

    def trouble(self, longest: float) -> str | None:
        """Why the thread can no longer be relied on; None while it is healthy.

        Args:
            longest: seconds above which a batch counts as stuck.
        """
        began = self._began
        if not self.thread.is_alive() and not self._closing:
            return "the model's thread has ended"
        if began is not None and time.monotonic() - began > longest:
            return f"a batch has been computing for more than {longest:g} seconds"
        if self._faults >= MAX_FAULTS:
            return f"{self._faults} batches in a row ended with faults"
        return None

    def _loop(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Run the next batch; False when closed.

        A method of its own, so that no local variable keeps large images until the next batch.
        """
        taken = self._take()
        if taken is None:
            return False
        key, jobs = taken
        began = self._began = time.monotonic()
        for job in jobs:
            job.waited, job.batch = began - job.entered, len(jobs)
        outcomes = self._outcomes(key, jobs)
        seconds = time.monotonic() - began
        self._began = None
        if all(map(_is_fault, outcomes)):
            self._faults += 1
        elif not all(isinstance(outcome, BaseException) for outcome in outcomes):
            self._faults = 0  # something was computed
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.computed = seconds
            if isinstance(outcome, BaseException):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        self._running = ()
        try:
            self._observe(key, jobs, seconds)
        except Exception:
            traceback.print_exc()
        return True

    def _outcomes(self, key: Any, jobs: Sequence[Job]) -> Sequence[Any]:
        """One answer or exception per job."""
        try:
            wanted = lambda: any(job.wanted for job in jobs)  # noqa: E731
            outcomes = self._run(key, [job.item for job in jobs], wanted)
            if len(outcomes) == len(jobs):
                return outcomes
            raise RuntimeError(f"{len(outcomes)} answers for {len(jobs)} images")
        except BaseException as error:  # the thread goes on, and the requests report it
            fault = error if isinstance(error, Exception) else RuntimeError(repr(error))
            return [fault] * len(jobs)

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
                if len(self._waiting[key]) < size and age < self._wait:
                    self._changed.wait(self._wait - age)
                    continue
                jobs = self._waiting[key]
                batch = [jobs.popleft() for _ in range(min(size, len(jobs)))]
                if not jobs:
                    del self._waiting[key]
                self._running = [job for job in batch if job.future.set_running_or_notify_cancel()]
                if self._running:
                    return key, self._running

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


def _is_fault(outcome: Any) -> bool:
    """Whether an outcome is an error of the server, not of the image or its client."""
    return isinstance(outcome, BaseException) and not isinstance(
        outcome, SetrError | DeadlinePassed
    )
