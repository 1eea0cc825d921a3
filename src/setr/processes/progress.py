"""A progress line: updated in place on a terminal, printed every 15 seconds elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Progress:
    """Shows the progress of a loop on stderr.

    Args:
        name: shown in front.
        total: number of steps; unknown if smaller than the steps done.
        start: steps done before.
    """

    silent = False
    """Print nothing; set on all ranks but 0."""

    def __init__(self, name: str, total: int, *, start: int = 0) -> None:
        self.name, self.total, self.start = name, total, start
        self.began = self.shown = time.monotonic()
        self.images, self.waited, self.done = 0, 0.0, start
        self.loss: float | None = None  # smoothed
        self.live = sys.stderr.isatty()
        self._line_open = False  # whether a line on the terminal is unfinished

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def count(self, done: int, total: int) -> None:
        """Count one more image; a total below `done` means that it is unknown."""
        self.total = total
        self.update(done, images=1)

    def fed_by(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; until each of them is there, the loop waits for data."""
        source = iter(items)
        while True:
            began = time.monotonic()
            item = next(source, None)
            self.waited += time.monotonic() - began
            if item is None:
                return
            yield item

    def update(
        self, done: int, *, images: int, loss: float | None = None, lr: float | None = None,
        **_: float,
    ) -> None:  # fmt: skip
        """Count a step: its images, its loss and learning rate."""
        self.done, self.images = done, self.images + images
        if loss is not None and math.isfinite(loss):  # fp16 skips steps that overflow
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        now = time.monotonic()
        early = now - self.shown < (0.2 if self.live else 15) and done != self.total
        if early or self.silent:
            return
        self.shown = now
        rates = self.rates()
        known = done <= self.total
        parts = [f"{self.name} {done}/{self.total}" if known else f"{self.name} {done}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if lr is not None:
            parts.append(f"lr {lr:.2e}")
        parts.append(f"{rates['images_per_second']:.1f} img/s")
        if self.waited:
            parts.append(f"data {rates['data_wait_percent']:.0f}%")
        if known:
            parts.append(f"ETA {_clock((self.total - done) * rates['seconds_per_step'])}")
        line = "  ".join(parts)
        print(f"\r{line:<90}" if self.live else line, end="" if self.live else "\n",
              file=sys.stderr, flush=True)  # fmt: skip
        self._line_open = self.live

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager whose time is not counted, such as an evaluation between steps."""
        began = time.monotonic()
        yield
        self.began += time.monotonic() - began

    def rates(self) -> dict[str, float]:
        """Images per second, seconds per step, and the share of time spent waiting for data."""
        spent = max(time.monotonic() - self.began, 1e-9)
        return {
            "images_per_second": self.images / spent,
            "seconds_per_step": spent / max(self.done - self.start, 1),
            "data_wait_percent": 100 * self.waited / spent,
        }

    def close(self) -> None:
        """End the line, if it is unfinished."""
        if self._line_open:
            print(file=sys.stderr)
        self._line_open = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def counting(name: str) -> Callable[[int, int], None]:
    """A progress callback for functions that report (done, total)."""
    bar = Progress(name, 0)

    def show(done: int, total: int) -> None:
        bar.count(done, total)
        if done == total:
            bar.close()

    return show
