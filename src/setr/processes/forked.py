"""Computing in forked processes, where threads that only the parent has may be waited for."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from setr.errors import UsageError

_FORKERS: list[int] = []
"""The last process that was forked, here or above, while it had threads of libraries."""


def require_threads(count: int) -> None:
    """Refuse to compute with threads that GNU OpenMP believes to have, and would wait for.

    They stay with the parent. Only the thread that was forked has this problem, the only one that
    the child has at first; other threads get new ones.

    Args:
        count: threads that a computation takes.

    Raises:
        UsageError: says what works instead.
    """
    if not _FORKERS or _FORKERS[0] == os.getpid() or count == 1:
        return
    if threading.current_thread() is threading.main_thread() and _is_gnu():
        raise UsageError(
            "this process was forked after its parent had loaded or run a model, and would wait "
            f"for ever for torch's {count} threads, which only the parent has; use "
            "multiprocessing's 'spawn', load the model in the new process alone, or call "
            "torch.set_num_threads(1) in it"
        )


def _is_gnu() -> bool:
    """Whether GNU's OpenMP is loaded; others prepare for forks."""
    with contextlib.suppress(OSError):
        return "libgomp" in Path("/proc/self/maps").read_text()
    return False


def _note_threads() -> None:
    """Called before each fork."""
    with contextlib.suppress(OSError):
        if len(os.listdir("/proc/self/task")) > threading.active_count():
            _FORKERS[:] = [os.getpid()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note_threads)
