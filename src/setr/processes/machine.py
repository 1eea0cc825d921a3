"""Free and used memory of the machine and the process, and the speed of matrix products.

Does not import torch at module level, so that programs without torch can be measured, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from setr.processes.quota import memory_left

if TYPE_CHECKING:
    import torch


def free_bytes(device: torch.device) -> int:
    """Memory of a device that this process can use, including what it holds already."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return available_bytes() + resident_bytes()


class Heap:
    """Returns freed memory that the C library holds back to the system.

    Large tensors of changing sizes fragment the heap: segmenting four megapixels by windows has
    grown processes to 2.6 GB with 0.13 GB in use.

    Args:
        growth: bytes the process may grow by before memory is returned.
    """

    def __init__(self, growth: int = 512 << 20) -> None:
        self.growth, self.floor = growth, 0

    def give_back(self, *, now: bool = False) -> None:
        """Return free memory, if the process has grown since the last call; cheap if not.

        Args:
            now: regardless of growth.
        """
        trim = _c_function("malloc_trim")
        if trim is not None and (now or resident_bytes() > self.floor + self.growth):
            trim(0)
            self.floor = resident_bytes()


HEAP = Heap()
"""The heap of this process."""


def page_out(path: Path) -> None:
    """Drop the memory pages of a file that a library has mapped into this process.

    They are read again on the next access. Does nothing if the kernel is not Linux 5.4 or later, or
    the file belongs to another user.
    """
    madvise = _c_function("madvise")
    if madvise is None:
        return
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, *_, name = line.split(maxsplit=5)
            if name == str(path.resolve()):
                start, end = (int(number, 16) for number in place.split("-"))
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), PAGE_OUT)


PAGE_OUT = 21
"""MADV_PAGEOUT of Linux; never loses data, whatever is mapped at the address."""


@functools.cache
def _c_function(name: str) -> Callable[..., int] | None:
    """A function of the C library, or None if it does not exist."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        return getattr(ctypes.CDLL(None), name)
    return None


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: of tensors on a GPU, of everything on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return process_peak()


def process_peak() -> int:
    """Peak main memory of this process in bytes; 0 if the system does not report it.

    `ru_maxrss` starts at the parent's memory at the time of the fork, so it is used only without
    /proc.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        rows = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(dict(row.split(":", 1) for row in rows)["VmHWM"].split()[0])
    if sys.platform == "win32":
        return 0  # needs another package
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def resident_bytes() -> int:
    """Main memory this process uses now, or its peak if the system reports only that."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _page_bytes()
    return process_peak()


def available_bytes() -> int:
    """Main memory available without swapping, within the limits of a container or job."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = dict(row.split(":", 1) for row in Path("/proc/meminfo").read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    left = memory_left()
    if left is not None:
        found.append(left)
    return min(found, default=_all_pages())


def _page_bytes() -> int:
    return int(os.sysconf("SC_PAGE_SIZE"))


def _all_pages() -> int:
    try:
        return int(os.sysconf("SC_PHYS_PAGES")) * _page_bytes()
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of a square matrix product, computed as in encoder blocks; dtype None is fp32.

    The best of a few repetitions, measured once in a process. Random numbers come from a separate
    generator.
    """
    import torch

    from setr.layers.products import product, worth_it

    side, repeats = (8192, 5) if device.type == "cuda" else (1024, 3)
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(side, side, device=device, generator=generator).to(dtype or torch.float32)
    best = float("inf")
    for _ in range(repeats + 1):  # the first is a warm-up
        _synchronize(device)
        began = time.perf_counter()
        product(a, a) if worth_it(a, a) else a @ a
        _synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
