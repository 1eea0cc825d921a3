"""Standard streams: messages, and streams that end before the command does (`head`, a terminal)."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from typing import Any, TextIO


def tell(text: str) -> None:
    """Print a line on stderr, apart from the result of a command."""
    print(text, file=sys.stderr, flush=True)


def outlast_readers() -> None:
    """Let this process work on when what reads its output has gone, or was never there.

    Text that nobody can read is dropped: a message must not end hours of work. A result on stdout
    that does not fit on a disk stays an error. Closed streams become /dev/null; otherwise the next
    file that is opened would take their number, and warnings of C libraries would go into it.
    """
    _open_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):  # else of a notebook, or a test
            setattr(sys, name, _outlasting(stream))


def _open_closed() -> None:
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)


def _outlasting(stream: Any) -> TextIO:
    """A stream of the same file that drops what cannot be written."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # without a buffer under python -u
    if type(raw) is not io.FileIO:  # a console of Windows, or done before
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    lasting: Any = _Lasting(raw.fileno())
    return io.TextIOWrapper(
        lasting if buffer is raw else io.BufferedWriter(lasting),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Lasting(io.FileIO):
    """A file of which failing writes count as done, where nothing is lost by that.

    Args:
        number: of the open file, which stays open.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self.holds_results = number != 2

    def write(self, data: Any, /) -> int:
        """Write, or drop; the number of bytes."""
        try:
            return super().write(data)
        except OSError as error:
            if self.holds_results and not self._has_no_reader(error):
                raise
            return memoryview(data).nbytes

    def _has_no_reader(self, error: OSError) -> bool:
        """Whether a pipe was closed, or a terminal hung up."""
        if error.errno == errno.EIO:
            return stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
        return error.errno == errno.EPIPE
