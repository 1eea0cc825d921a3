"""A lock that lets one process at a time use a folder."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from setr.errors import USAGE, SetrError


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
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(fd, 200).decode(errors="replace") or "another process"
            os.close(fd)
            raise SetrError(
                f"{self.folder}: {holder} is using it; wait for that, or choose another folder",
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
        """Release the lock, if it is held."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
