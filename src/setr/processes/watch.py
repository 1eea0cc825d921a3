"""Who of the processes is still there: a heartbeat in a thread.

Each process counts up in the shared store and looks at its right neighbour, so the cost grows with
the number of processes and not with its square. Counts are compared with themselves, never with a
clock of another host. torch notices a lost process too, but not by name, and with NCCL only after
ten minutes.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

from setr.errors import FAILED

BEAT = 1.0
"""Seconds between heartbeats."""
SILENCE = float(os.environ.get("SETR_SILENCE") or 20)
"""Seconds without a heartbeat after which a process counts as lost (variable SETR_SILENCE)."""
GRACE = 5.0
"""Seconds the rest of this process gets to end by itself once another is lost."""


class Watch:
    """Beats for this process and watches the next one.

    Args:
        store: connection of its own to the store of the run.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.lost = ""
        self.asked = False  # to stop: set it here, and all processes have it two beats later
        self._found, self._leaving = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="setr-watch", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def leave(self, problem: str) -> None:
        """Stop watching; a problem of this process is told to the others.

        Rank 0 then waits until they know, as the store may end with it.
        """
        self._leaving.set()
        self._thread.join(BEAT + 1)
        if self.lost:  # all end, and nobody looks for this process
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
        except RuntimeError:  # the store's host left first
            return

    def _knows(self, rank: int) -> bool:
        """Whether another process has heard of the problem told, or left."""
        beat = f"beat/{rank}"
        left = self.store.check([beat]) and self.store.get(beat) == b"left"
        return bool(left or self.store.check([f"heard/{rank}"]))

    def find_lost(self) -> str | None:
        """After a broken connection: the line that names who was lost, if one was."""
        self._found.wait(SILENCE + 5 * BEAT)
        return self.lost or None

    def _tell(self, line: str) -> None:
        """Tell all; the first line told stays."""
        self.lost = self.store.compare_set("lost", "", line).decode()

    def _run(self) -> None:
        following = (self.rank + 1) % self.world
        count, seen, since = 0, b"", time.monotonic()
        while not self._leaving.wait(BEAT):
            count += 1
            try:
                self.store.set(f"beat/{self.rank}", str(count))
                if self.asked:
                    self.store.set("stop", "asked")
                elif self.store.check(["stop"]):
                    self.asked = True
                key = f"beat/{following}"
                beat = self.store.get(key) if self.store.check([key]) else b""
                if beat not in (seen, b"left"):
                    seen, since = beat, time.monotonic()
                if beat != b"left" and time.monotonic() - since > SILENCE:
                    host = self.store.get(f"host/{following}").decode()
                    self._tell(
                        f"lost rank {following} on {host}: no sign of life for {SILENCE:g} s; "
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
        """End a process whose main thread hangs in a collective that will never complete."""
        if not self._leaving.wait(GRACE):
            print(f"setr: {self.lost}", file=sys.stderr, flush=True)
            os._exit(FAILED)
