"""Locks: what another process uses is told from what a killed one left."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from setr.errors import UsageError

BEGUN = 60.0
"""Seconds after which a folder without a lock was left by a process that was killed."""
ATTEMPTS = 100
"""Lock a file that is being replaced so often; some network disks never show it as the same."""


def open_locked(
    path: str | os.PathLike, flags: int, kind: Literal["lockf", "flock"]
) -> tuple[int, bool]:
    """Open a file and lock it, made if missing; the lock of a file is no use once it is replaced.

    Args:
        flags: of `os.open`.
        kind: `lockf` locks for this process without its children, until it closes the file under
            any number; `flock` for this number, until it is closed in the children, too.

    Returns:
        Its number, and whether it is locked: not on Windows and file systems without locks.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: cannot be opened.
    """
    for left in reversed(range(ATTEMPTS)):
        fd = os.open(path, flags | os.O_CREAT, 0o666)
        try:
            locked = lock_file(fd, kind)
        except BlockingIOError:
            os.close(fd)
            raise
        if not (locked and left) or _is_at(fd, path):
            break
        os.close(fd)
    return fd, locked


def lock_file(fd: int, kind: Literal["lockf", "flock"]) -> bool:
    """Lock an open file; arguments, result and `BlockingIOError` as for `open_locked`."""
    if fcntl is None:
        return False
    try:
        getattr(fcntl, kind)(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise BlockingIOError from None
    except OSError:
        return False
    return True


def _is_at(fd: int, path: str | os.PathLike) -> bool:
    """Whether an open file is still the one at a path, not one that was replaced or removed."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


class Lock:
    """Lock on a folder; released whenever this process ends, and not inherited by children.

    Does nothing on file systems without locks.

    Args:
        folder: must exist when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path, self._fd = folder, folder / ".lock", -1

    def take(self) -> None:
        """Take the lock, unless this object holds it already.

        Raises:
            SetrError: another process holds it.
        """
        if self._fd >= 0 or fcntl is None:
            return
        try:
            fd, locked = open_locked(self._path, os.O_RDWR, "lockf")
        except BlockingIOError:
            raise UsageError(
                f"{self.folder}: {self._holder()} is using it; wait for that, or choose another "
                "folder"
            ) from None
        if not locked:
            os.close(fd)
            return
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk
            os.truncate(fd, 0)
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _holder(self) -> str:
        try:
            return self._path.read_text(errors="replace")[:200] or "another process"
        except OSError:  # it has just left
            return "another process"

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


class ScratchFolder:
    """A temporary folder, removed in the end; a context manager that gives its path.

    Those of killed processes are removed at the beginning, where the file system has locks.

    Args:
        parent: in which it lies.
        prefix: of its name; others of this prefix are taken for such folders.

    Raises:
        OSError: cannot be made.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        for left in parent.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # at work, or gone
                begun = (left / ".lock").exists()
                if begun or time.time() - left.stat().st_mtime > BEGUN:
                    fd, locked = open_locked(left / ".lock", os.O_RDWR, "flock")
                    os.close(fd)
                    if locked:
                        shutil.rmtree(left)
        self._folder = tempfile.TemporaryDirectory(
            prefix=prefix, dir=parent, ignore_cleanup_errors=True
        )
        hidden, lock = (Path(self._folder.name, name) for name in (".locking", ".lock"))
        self._fd, _ = open_locked(hidden, os.O_RDWR, "flock")
        if fcntl is not None:  # Windows does not rename what is open
            hidden.rename(lock)  # so one of this name is locked, or left

    def __enter__(self) -> Path:
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._folder.cleanup()
