"""What the routes share: a request with an image on its way through the model.

Body (bounded) -> header of the image (bounded) -> a place among those admitted -> decoding -> the
queue -> the model -> encoding. Whoever hangs up or runs out of time leaves the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from starlette.requests import Request

from setr.errors import SetrError
from setr.images import ImageTooLargeError, check_whole, read_image
from setr.serve.batching import Batcher, DeadlinePassed, Job
from setr.serve.bodies import Gone, image_bytes
from setr.serve.limits import Admission, Limits, Refusal
from setr.serve.metrics import Metrics
from setr.serve.models import Key, Models, Task

T = TypeVar("T")


class Service:
    """What the routes share: models, queue, places, threads.

    Args:
        models: loaded models.
        limits: of the server.
    """

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
        # two are enough to keep decoding and encoding beside the model; more would fight it
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="setr-files")

    def close(self) -> None:
        """Finish what waits and stop the threads."""
        self.batcher.close()
        self.threads.shutdown()

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
            Refusal: whatever `bodies`, `limits`, `models` refuse; 422 unreadable; 504 too late.
            Gone: the client hung up.
        """
        end = request.state.began + deadline
        name, _ = self.models[model]
        async with image_bytes(request, self.admission) as data:
            with self.admission.admit():
                height, width = await self._in_thread(self._check, data)
                self.models.check(name, height, width, task)
                request.state.note.update(model=name, task=task, width=width, height=height)
                with self.admission.hold_pixels(height * width):
                    image = await self._in_thread(self._decode, data)
                    key = Key(name, task, *image.shape[:2])
                    job = self.batcher.submit(key, make_item(image), end)
                    answer = await self._outcome(request, job, deadline)
                    began = time.monotonic()
                    encoded = await self._in_thread(encode, name, answer)
                    request.state.note.update(
                        queue_ms=round(1000 * job.waited, 1),
                        model_ms=round(1000 * job.computed, 1),
                        encode_ms=round(1000 * (time.monotonic() - began), 1),
                        batch=job.batch,
                    )
                    return encoded

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    def _check(self, data: bytes) -> tuple[int, int]:
        return _readable(lambda: check_whole(data, max_pixels=self.limits.max_pixels)[0])

    def _decode(self, data: bytes) -> np.ndarray:
        return _readable(lambda: read_image(data, max_pixels=self.limits.max_pixels))

    async def _outcome(self, request: Request, job: Job, deadline: float) -> Any:
        """Wait for a job, its deadline or the client's leaving, whichever is first."""
        answer = asyncio.wrap_future(job.future)
        leaving = asyncio.ensure_future(request.receive())  # the body is read: only a hang-up comes
        try:
            await asyncio.wait(
                {answer, leaving},
                timeout=max(0.0, job.deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answer.done():
                return answer.result()
            if leaving.done():
                raise Gone
            raise DeadlinePassed
        except DeadlinePassed:
            raise Refusal(504, "deadline", f"no answer within {deadline:g} seconds") from None
        except SetrError as error:
            raise Refusal(422, "image", str(error)) from None
        except (MemoryError, torch.OutOfMemoryError):
            raise Refusal(503, "memory", "out of memory; send a smaller image") from None
        finally:
            job.abandoned = True
            leaving.cancel()
            answer.cancel()

    def _observe(self, key: Key, jobs: Sequence[Job], seconds: float) -> None:
        share = seconds / len(jobs)
        self.admission.seconds_per_image += 0.2 * (share - self.admission.seconds_per_image)
        self.metrics.images.labels(key.model, key.task).inc(len(jobs))
        self.metrics.pixels.labels(key.model).inc(len(jobs) * key.height * key.width)
        self.metrics.batch_size.labels(key.model).observe(len(jobs))
        self.metrics.model_seconds.labels(key.model).observe(seconds)
        for job in jobs:
            self.metrics.queue_seconds.observe(job.waited)


def _readable(read: Callable[[], T]) -> T:
    """What `images` reads, its errors as refusals."""
    try:
        return read()
    except ImageTooLargeError as error:
        message = str(error).partition("; ")[0].removeprefix("image data: ")
        raise Refusal(413, "too_many_pixels", f"{message}; scale the image down") from None
    except SetrError as error:
        raise Refusal(422, "image", str(error)) from None
