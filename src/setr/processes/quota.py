"""What the system lets this process have: CPUs, and the memory that a group of processes shares.

Containers and batch systems put processes into control groups. torch does not read their limits: it
starts a thread for each core of the machine, and in a container with two CPUs of 64 these threads
wait for each other most of the time. A limit may be set for any group around a process; version 1
keeps a tree of groups for each kind of limit, version 2 a single one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where the limits of groups are found."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""Names the groups of this process: lines of `number:kinds:path`, no kinds in version 2."""
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def limit_threads() -> None:
    """Have torch start no more threads than a quota keeps busy, unless `OMP_NUM_THREADS` says more.

    Called before torch is imported. A quota above half of the CPUs changes nothing: two may be one
    core's, and of these torch counts one.
    """
    if 2 * cpus() <= _allowed():
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus()))


def cpus() -> int:
    """CPUs this process may keep busy: of its affinity and its groups' quota, rounded up."""
    counts = [_allowed()]
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            quota, period = map(int, (group / "cpu.max").read_text().split())
            counts.append(math.ceil(quota / period))
        with suppress(OSError, ValueError):
            quota, period = (
                int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
            )
            if quota > 0:
                counts.append(math.ceil(quota / period))
    return max(1, min(counts))


def memory_left() -> int | None:
    """Bytes that the groups of this process may still take; None without a limit.

    Files that the system keeps in memory and nobody has used lately make room, so they do not count
    as taken.
    """
    left = []
    for group in _groups("memory"):
        for most, now, cached in _MEMORY_FILES:
            with suppress(OSError, ValueError, KeyError):
                limit, used = (int((group / name).read_text()) for name in (most, now))
                lines = (group / "memory.stat").read_text().splitlines()
                files = int(dict(line.split() for line in lines)[cached])
                left.append(max(0, limit - max(0, used - files)))
    return min(left, default=None)


def _allowed() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _groups(kind: str) -> Iterator[Path]:
    """Folders of the groups around this process that may limit something, the innermost first.

    In a container the path is often that of the host, and what is there of it is the root.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds and kind not in kinds.split(","):
            continue
        root = CGROUP / kind if kinds else CGROUP
        parts = [part for part in place.split("/") if part]
        for depth in range(0 if ".." in parts else len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])
