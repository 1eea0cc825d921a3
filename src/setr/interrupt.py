"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupt:
    """Used in `with`: turns the first SIGINT or SIGTERM into `requested`.

    The next one acts as usual.
    """

    def __init__(self) -> None:
        self.requested = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: nobody sends signals there
                break
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.__exit__(None, None, None)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
