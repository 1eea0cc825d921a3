"""Limits for one request and for all requests together, and the error for what exceeds them.

Everything a client can send is bounded before memory or time is spent on it: bytes while they
arrive, pixels from the image's header, patches from the model's protocol, requests by number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from setr.errors import UsageError

LONGEST = 1e6
"""Longest time that may be given, in seconds; timers overflow at some thousand times that."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the server; sizes of one request unless they say otherwise."""

    max_bytes: int = 32 << 20
    """Bytes of a request's body."""
    max_pixels: int = 50_000_000
    """Pixels of an image, read from its header; all admitted images may hold twice as many."""
    max_patches: int = 20_000
    """Patches one pass of a transformer may hold; attention costs their square."""
    rollout_patches: int = 8_192
    """The same for rollout, which computes and sums the weights of every head of every block."""
    max_scores: int = 250_000_000
    """Scores (K x H x W) of an answer, and of all answers inside together: half a gigabyte."""
    max_unsent: int = 1 << 30
    """Bytes of all answers that their clients have not taken yet."""
    queue: int = 64
    """Requests admitted at once: decoding, waiting, computing or encoding."""
    deadline: float = 60.0
    """Seconds from the request's first byte to its answer."""
    batch: int = 8
    """Images of one size in one pass of the model."""
    wait: float = 0.005
    """Seconds an image waits for others of its size while the model is idle."""
    header_seconds: float = 10.0
    """For the headers of a request to arrive; also how long an idle connection is kept."""
    body_seconds: float = 30.0
    """For a body to arrive."""
    send_seconds: float = 30.0
    """For a client to take the next 256 KB of an answer."""
    drain: float = 60.0
    """For running requests to finish after SIGTERM."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(field.default, float):
                good, rule = value >= 1, "at least 1"
            elif field.name == "wait":
                good, rule = 0 <= value <= LONGEST, f"0 to {LONGEST:,.0f} seconds"
            else:
                good, rule = 0 < value <= LONGEST, f"more than 0, at most {LONGEST:,.0f} seconds"
            if not good:  # nan, too, is none of these
                raise UsageError(f"{field.name} {value}: give {rule}")


class Refusal(Exception):  # noqa: N818  the client's problem, not an error of the server
    """An HTTP error, raised anywhere and answered as JSON.

    Args:
        status: HTTP status.
        code: a short word that programs can test for.
        message: one sentence for people: the value, the rule, the fix.
        retry_after: seconds after which a retry makes sense.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    @property
    def content(self) -> dict[str, dict[str, str]]:
        """The JSON body of every error this server answers with."""
        return {"error": {"code": self.code, "message": self.message}}


class Budget:
    """An amount shared by all admitted requests; a request that is alone may exceed it.

    Args:
        busy: makes the error of a request that does not fit beside the others.
    """

    def __init__(self, most: int, busy: Callable[[], Refusal]) -> None:
        self.most, self.busy = most, busy
        self.held = 0

    def take(self, count: int) -> None:
        """Hold more, until `give_back`.

        Raises:
            Refusal: 429, others hold too much.
        """
        if self.held and self.held + count > self.most:
            raise self.busy()
        self.held += count

    def give_back(self, count: int) -> None:
        """Undo `take`."""
        self.held -= count

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold an amount while in the context.

        Raises:
            Refusal: 429, others hold too much.
        """
        self.take(count)
        try:
            yield
        finally:
            self.give_back(count)


class Admission:
    """Admission control: bounds requests, their bytes, pixels, scores and answers.

    Used on the event loop alone, so plain counters suffice; only `seconds_per_image` is written by
    the model's thread.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.bytes = Budget(16 * limits.max_bytes, self.busy)
        self.pixels = Budget(2 * limits.max_pixels, self.busy)
        self.scores = Budget(limits.max_scores, self.busy)
        self.unsent = Budget(limits.max_unsent, self.busy)
        self.seconds_per_image = 0.1

    def retry_after(self) -> int:
        """Seconds until the admitted requests will be done, 1 to 60."""
        return max(1, min(60, math.ceil(self.requests * self.seconds_per_image)))

    def busy(self) -> Refusal:
        """The error of a server that is full."""
        return Refusal(
            429,
            "busy",
            f"the server is full ({self.requests} requests inside); try again in a moment",
            retry_after=self.retry_after(),
        )

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request while it is served.

        Raises:
            Refusal: 429, the server is full.
        """
        if self.requests >= self.limits.queue:
            raise self.busy()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
