"""Detects lost processes by a heartbeat in a thread.

Each process increments a counter in the shared store and watches that of the next rank, so the cost
grows linearly with the number of processes. A counter is compared with its earlier values, never
with the clock of another host. torch notices a lost process, too, but does not say which, and with
NCCL only after ten minutes.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from setr.errors import FAILED, UsageError

BEAT = 1.0
"""Seconds between heartbeats."""
SILENCE = 20.0
"""Seconds without a heartbeat until a process counts as lost, unless SETR_SILENCE sets others."""
GRACE = 5.0
"""Seconds the main thread has to exit by itself once another process is lost."""


def silence_of(env: Mapping[str, str]) -> float:
    """Seconds without a heartbeat until a process counts as lost.

    Raises:
        SetrError: SETR_SILENCE is not a number of seconds that some heartbeats fit into.
    """
    given = env.get("SETR_SILENCE") or str(SILENCE)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 2 * BEAT <= seconds < math.inf:
        raise UsageError(f"SETR_SILENCE={given}: give seconds, at least {2 * BEAT:g}, or unset it")
    return seconds


class Watch:
    """Sends heartbeats for this process and watches the next one.

    Args:
        store: a separate connection to the store of the run.
        world: number of processes.
        silence: seconds without a heartbeat until the next one counts as lost.
    """

    def __init__(self, store: Any, rank: int, world: int, silence: float = SILENCE) -> None:
        self.store, self.rank, self.world, self.silence = store, rank, world, silence
        self.lost = ""
        self.stop_requested = False  # reaches all processes within two beats
        self._found, self._leaving = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="setr-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def leave(self, problem: str) -> None:
        """Stop watching, and tell the other processes the problem of this one, if any.

        Rank 0 then waits until they know, as the store may end with its process.
        """
        self._leaving.set()
        self._thread.join(BEAT + 1)
        if self.lost:  # all processes exit already
            return
        try:
            if problem:
                line = " ".join(problem.split())
                host = socket.gethostname()
                self._tell(f"rank {self.rank} on {host} stopped: {line}")
            self.store.set(f"beat/{self.rank}", "left")
            deadline = time.monotonic() + GRACE
            while problem and self.rank == 0 and time.monotonic() < deadline:
                if all(map(self._knows, range(1, self.world))):
                    return
                time.sleep(0.05)
        except RuntimeError:  # the process that hosts the store left first
            return

    def _knows(self, rank: int) -> bool:
        """Whether another process has read the problem, or left."""
        beat = f"beat/{rank}"
        left = self.store.check([beat]) and self.store.get(beat) == b"left"
        return bool(left or self.store.check([f"heard/{rank}"]))

    def find_lost(self) -> str | None:
        """After a connection error: the message that names the lost process, if there is one."""
        self._found.wait(self.silence + 5 * BEAT)
        return self.lost or None

    def _tell(self, line: str) -> None:
        """Publish a message to all processes, unless there is one already."""
        self.lost = self.store.compare_set("lost", "", line).decode()

    def _run(self) -> None:
        next_rank = (self.rank + 1) % self.world
        count, seen, since = 0, b"", time.monotonic()
        while not self._leaving.wait(BEAT):
            count += 1
            try:
                self.store.set(f"beat/{self.rank}", str(count))
                if self.stop_requested:
                    self.store.set("stop", "asked")
                elif self.store.check(["stop"]):
                    self.stop_requested = True
                key = f"beat/{next_rank}"
                beat = self.store.get(key) if self.store.check([key]) else b""
                if beat not in (seen, b"left"):
                    seen, since = beat, time.monotonic()
                if beat != b"left" and time.monotonic() - since > self.silence:
                    host = self.store.get(f"host/{next_rank}").decode()
                    self._tell(
                        f"lost rank {next_rank} on {host}: no sign of life for {self.silence:g} s; "
                        "see its own output, then continue with --resume"
                    )
                elif self.store.check(["lost"]):
                    self.lost = self.store.get("lost").decode()
                    self.store.set(f"heard/{self.rank}", "")
            except RuntimeError:
                if self._leaving.is_set():
                    return
                self.lost = (
                    "lost rank 0: the store it keeps does not answer; see its own output, then "
                    "continue with --resume"
                )
            if self.lost:
                self._found.set()
                self._end()
                return

    def _end(self) -> None:
        """Exit if the main thread hangs in a collective that will never complete."""
        if not self._leaving.wait(GRACE):
            print(f"setr: {self.lost}", file=sys.stderr, flush=True)
            os._exit(FAILED)
