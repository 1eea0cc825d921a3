"""What the routes share: the way of an image from the request through the model.

Body (bounded) -> header of the image (bounded) -> admission -> decoding -> queue -> model ->
encoding. If the client hangs up or its deadline passes, the request ends in whichever step it is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from starlette.datastructures import Headers
from starlette.requests import Request

from setr.bands import Bands, check_pixels, read_pixels
from setr.errors import SetrError
from setr.prediction.passes import NoMemoryError
from setr.processes.faults import is_out_of_memory
from setr.reading.pillow import ImageTooLargeError
from setr.serve.batching import Batcher, DeadlinePassed, Job
from setr.serve.bodies import Gone, body_bytes, image_of
from setr.serve.limits import Admission, Limits, Refusal
from setr.serve.metrics import Metrics
from setr.serve.models import Key, Models, Task

T = TypeVar("T")

STUCK = 5.0
"""A batch that takes this many times the deadline counts as stuck."""
LAST = 5.0
"""Seconds that threads get to end after the last request."""


class Service:
    """What the routes share: models, queue, places, threads."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.draining = False
        self.admission = Admission(limits)
        self.batcher = Batcher(
            models.run, size=models.batch_size, wait=limits.wait, observe=self._observe
        )
        self.metrics = Metrics(
            lambda: len(self.batcher),
            lambda: self.admission.requests,
            lambda: self.batcher.dropped,
        )
        self.threads = [self.batcher.thread]
        # two of each keep up with the model, more would take its cores; separate pools, so that
        # slow encoding does not delay decoding
        self.decoding, self.encoding = self._pool("setr-decode"), self._pool("setr-encode")

    def _pool(self, name: str) -> ThreadPoolExecutor:
        def started() -> None:
            self.threads.append(threading.current_thread())

        return ThreadPoolExecutor(2, name, initializer=started)

    def close(self) -> None:
        """Abandon what is left, and give the threads a moment to notice."""
        self.batcher.close()
        for pool in (self.decoding, self.encoding):
            pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + LAST
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))

    @property
    def computing(self) -> bool:
        """Whether a thread has not ended yet."""
        return any(thread.is_alive() for thread in self.threads)

    def trouble(self) -> str | None:
        """Why this process can no longer serve requests; None while it can."""
        return self.batcher.trouble(STUCK * self.limits.deadline)

    async def compute(
        self,
        request: Request,
        model: str | None,
        task: Task,
        deadline: float,
        make_item: Callable[[np.ndarray], Any],
        encode: Callable[[str, Any], T],
    ) -> T:
        """An image from its request through the model to `encode(name, answer)`.

        Raises:
            Refusal: whatever `bodies`, `limits`, `models`, `encode` refuse; 422 unreadable; 503 out
                of memory; 504 too late.
            Gone: the client hung up.
        """
        name, predictor = self.models[model]
        bands, most = predictor.bands, self.limits.max_pixels
        async with body_bytes(request, self.admission) as body:
            with self.admission.admit(), _Client(request, deadline) as client:
                found = self._thread(self.decoding, _checked, request.headers, body, bands, most)
                data, (height, width) = await client.wait(found)
                self.models.check(name, height, width, task)
                request.state.note.update(model=name, task=task, width=width, height=height)
                scores = self.models.scores(name, height, width, task)
                request.state.until_sent.enter_context(self.admission.scores.hold(scores))
                of_rgb = height * width * -(-len(predictor.info.mean) // 3)
                with self.admission.pixels.hold(of_rgb):
                    decoded = self._thread(self.decoding, read_pixels, data, bands, max_pixels=most)
                    image = await client.wait(decoded)
                    key = Key(name, task, *image.shape[:2])
                    job = self.batcher.submit(key, make_item(image), client.end)
                    try:
                        answer = await client.wait(asyncio.wrap_future(job.future))
                    finally:
                        self.batcher.cancel(job)
                    began = time.monotonic()
                    encoded = await client.wait(self._thread(self.encoding, encode, name, answer))
                    request.state.note.update(
                        queue_ms=round(1000 * job.waited, 1),
                        model_ms=round(1000 * job.computed, 1),
                        encode_ms=round(1000 * (time.monotonic() - began), 1),
                        batch=job.batch,
                    )
                    return encoded

    def _thread(
        self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any, **options: Any
    ) -> asyncio.Future[T]:
        return asyncio.wrap_future(pool.submit(function, *arguments, **options))

    def _observe(self, key: Key, jobs: Sequence[Job], seconds: float) -> None:
        share = seconds / len(jobs)
        self.admission.seconds_per_image += 0.2 * (share - self.admission.seconds_per_image)
        self.metrics.images.labels(key.model, key.task).inc(len(jobs))
        self.metrics.pixels.labels(key.model).inc(len(jobs) * key.height * key.width)
        self.metrics.batch_size.labels(key.model).observe(len(jobs))
        self.metrics.model_seconds.labels(key.model).observe(seconds)
        for job in jobs:
            self.metrics.queue_seconds.observe(job.waited)


def _checked(
    headers: Headers, body: bytearray, bands: Bands | None, max_pixels: int
) -> tuple[bytes, tuple[int, int]]:
    """The image in a body (which is emptied), and its height and width as displayed.

    Raises:
        Refusal: as `image_of`.
        SetrError: as `check_pixels`.
    """
    data = image_of(headers, body)
    return data, check_pixels(data, bands, max_pixels=max_pixels)[0]


class _Client:
    """A client that waits for its answer.

    Args:
        request: its body has been read, so the next message can only be a disconnect.
        deadline: seconds that the client waits, from the request's first byte.
    """

    def __init__(self, request: Request, deadline: float) -> None:
        self.deadline = deadline
        self.end = request.state.began + deadline
        self._leaving = asyncio.ensure_future(request.receive())

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.cancel()

    async def wait(self, answer: asyncio.Future[T]) -> T:
        """The answer, unless the deadline or the client's leaving comes first.

        Raises:
            Refusal: 504 too late; and what the answer's error means to the client.
            Gone: the client hung up.
        """
        first: set[asyncio.Future[Any]] = {answer, self._leaving}
        left = max(0.0, self.end - time.monotonic())
        try:
            await asyncio.wait(first, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if self._leaving.done():
                raise Gone
            raise DeadlinePassed
        except Exception as error:
            refusal = self._refusal(error)
            if refusal is None:
                raise
            raise refusal from None
        finally:
            answer.cancel()

    def _refusal(self, error: Exception) -> Refusal | None:
        """What an error means to the client; None for a fault of this server."""
        if isinstance(error, DeadlinePassed):
            return Refusal(504, "deadline", f"no answer within {self.deadline:g} seconds")
        if isinstance(error, NoMemoryError) or is_out_of_memory(error):
            return Refusal(503, "memory", "out of memory; send a smaller image")
        if isinstance(error, ImageTooLargeError):
            message = str(error).partition("; ")[0].removeprefix("image data: ")
            return Refusal(413, "too_many_pixels", f"{message}; scale the image down")
        if isinstance(error, SetrError):
            return Refusal(422, "image", str(error))
        return None
