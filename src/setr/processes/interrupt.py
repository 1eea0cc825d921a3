"""Handling of SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from setr.errors import INTERRUPTED, SetrError


class Stopped(KeyboardInterrupt):
    """Raised by a signal inside `Interrupt.at_once`."""


class Interrupt:
    """Context manager in which SIGINT and SIGTERM set `requested`.

    A second SIGINT has its usual effect. A second SIGTERM has none: `timeout` and schedulers send
    one to the process and one to its group, and use SIGKILL for processes that stay.
    """

    def __init__(self) -> None:
        self.requested = self._raises = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self._handle)
            except ValueError:  # only the main thread can handle signals
                break
        return self

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Context manager for long operations, in which the first signal raises `Stopped`."""
        self._raises = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if number == signal.SIGINT:
            signal.signal(number, self.previous[number])
        if first and self._raises:
            raise Stopped

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_with(text: str) -> Iterator[None]:
    """Context manager in which SIGINT and SIGTERM raise a `SetrError` with this text at once."""
    try:
        with Interrupt() as interrupt, interrupt.at_once():
            yield
    except KeyboardInterrupt:
        raise SetrError(text, code=INTERRUPTED) from None
