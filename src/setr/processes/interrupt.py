"""Handling of SIGINT, SIGTERM, and SIGHUP, which a terminal that closes sends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from setr.errors import INTERRUPTED, SetrError

ONE_PRESS = 1.0
"""Seconds in which SIGINT counts once: keys repeat, and programs that start others pass it on."""


class Stopped(KeyboardInterrupt):
    """Raised by a signal inside `Interrupt.at_once`, and by evaluations that are told to stop.

    The arguments are a line for each image that could not be read until then.
    """


class Interrupt:
    """Context manager in which the signals of `stop_signals` set `requested`.

    A second SIGINT has its usual effect, unless it comes within `ONE_PRESS`. A second SIGTERM has
    none: `timeout` and schedulers send one to the process and one to its group, and use SIGKILL for
    processes that stay.
    """

    def __init__(self) -> None:
        self.requested = self._raises = False
        self._pressed: float | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in stop_signals():
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
            if self._pressed is None:
                self._pressed = time.monotonic()
            elif time.monotonic() - self._pressed > ONE_PRESS:
                signal.signal(number, self.previous[number])
                signal.raise_signal(number)
        if first and self._raises:
            raise Stopped

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_with(text: str) -> Iterator[None]:
    """Context manager in which signals that stop raise a `SetrError` with this text at once."""
    try:
        with Interrupt() as interrupt, interrupt.at_once():
            yield
    except KeyboardInterrupt:
        raise SetrError(text, code=INTERRUPTED) from None


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """Context manager in which SIGTERM and SIGHUP raise `KeyboardInterrupt`, as Ctrl-C does.

    Files that are being written are then removed. Signals that this process ignores or handles are
    left alone. All wait until torch is loaded, which an exception would abort with a dump.
    """
    previous: dict[int, Any] = {}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    found = [number for number in stop_signals() if signal.getsignal(number) in usual]
    try:
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in found:
                previous[number] = signal.signal(number, _leave)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_at_once_after() -> Iterator[None]:
    """Context manager of a whole program: what is left of it after the block ends by one SIGINT.

    There, and while this process ends, Python would show a traceback.
    """
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_signals() -> list[int]:
    """The signals that stop a command; not SIGHUP where it is ignored (nohup) or handled."""
    found: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) in (signal.SIG_DFL, _leave):
        found.append(signal.SIGHUP)
    return found


def _leave(number: int, frame: FrameType | None) -> None:
    if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)  # a second one would end the clearing up
    raise KeyboardInterrupt
