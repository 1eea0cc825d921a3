"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

from setr.errors import USAGE, SetrError


class Lock:
    """Of a folder; it ends with this process, however that ends, and children do not inherit it.

    Where a file system has no locks, nobody is refused.

    Args:
        folder: which is there once the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path, self._fd = folder, folder / ".lock", -1

    def take(self) -> None:
        """Take it, if it is not taken already.

        Raises:
            SetrError: another process has it.
        """
        if self._fd >= 0 or fcntl is None:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(fd, 200).decode(errors="replace") or "another process"
            os.close(fd)
            raise SetrError(
                f"{self.folder}: {holder} works there; let it end, or choose another folder",
                code=USAGE,
            ) from None
        except OSError:
            os.close(fd)
            return
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk
            os.truncate(fd, 0)
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Give it up."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
