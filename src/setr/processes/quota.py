"""Limits of control groups (cgroups): the CPUs and the memory that this process may use.

Containers and batch systems put processes into cgroups. torch does not read their limits: it starts
one thread per core of the machine, and in a container with 2 of 64 CPUs these threads wait for each
other most of the time. Any group around a process may have a limit. cgroup v1 has a tree of groups
for each resource, v2 a single one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Folder of the groups, with their limits."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""Lists the groups of this process as `number:controllers:path`; no controllers in v2."""
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def limit_threads() -> None:
    """Limit torch's threads to the CPU quota, unless `OMP_NUM_THREADS` is set.

    Called before torch is imported. Does nothing for quotas above half of the CPUs, since two CPUs
    may belong to one core, for which torch starts one thread.
    """
    if 2 * cpus() <= _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus()))


def limit_spinning() -> None:
    """Let torch's threads wait awake for a moment only, unless the environment says how long.

    GNU OpenMP's 300,000 rounds keep a core busy for milliseconds while the thread that is waited
    for has none, as on a machine that does other work. Called before torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def cpus() -> int:
    """CPUs this process may use, by its affinity and the quotas of its groups, rounded up."""
    counts = [_affinity()]
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):  # "max": no limit
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
    """Bytes that the groups of this process may still allocate; None without a limit.

    Inactive pages of the file cache can be reclaimed, so they do not count as used.
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


def _affinity() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _groups(kind: str) -> Iterator[Path]:
    """Folders of the groups around this process, the innermost first.

    In a container the path is often that on the host, of which only the root exists.
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
