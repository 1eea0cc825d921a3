"""Downloading over http and https, with limits on size and time.

Accepting URLs from untrusted users lets them reach every host this machine can reach (SSRF), so
downloads are disabled unless the user enables them.
"""

from __future__ import annotations

import math
import re
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from setr.errors import SetrError, UsageError
from setr.writing import replacing

MAX_BYTES = 100 << 20
"""Larger files are refused."""
SECONDS = 30.0
"""Timeout of a whole download."""
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
"""Statuses of an answer that names another address."""


def is_url(text: str) -> bool:
    """Whether this is an http(s) URL."""
    return text.lower().startswith(("http://", "https://"))


def require_allowed(url: str, allowed: bool) -> None:
    """Refuse an address unless the user has allowed addresses."""
    if not allowed:
        raise SetrError(
            f"{without_password(url)}: downloads are disabled; allow them with --allow-urls, in "
            "Python with allow_urls=True"
        )


def without_password(url: str) -> str:
    """An address to show: `rtsp://me:secret@host/` as `rtsp://me:***@host/`."""
    return re.sub(r"(?<=://)([^/:]*):[^/]*@", r"\1:***@", url)


def split_url(url: str) -> SplitResult:
    """The parts of an address.

    Raises:
        SetrError: it cannot be split, such as where a bracket of an IPv6 address is missing.
    """
    try:
        return urlsplit(url)
    except ValueError as error:
        shown = without_password(url)
        raise UsageError(f"{shown}: not an address ({error}); correct it") from None


def url_name(url: str) -> str:
    """The file name in an address, or else its host."""
    parts = split_url(url)
    name = PurePosixPath(unquote(parts.path).replace("\0", "").replace("\\", "/")).name
    return name if name not in ("", "..") else parts.hostname or "image"


def download(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """Download a file.

    Args:
        url: http or https; redirects to other schemes are refused.
        max_bytes: larger files are refused, if possible before the download.
        seconds: timeout of the whole download, with its redirects.

    Raises:
        SetrError: another scheme, no response, a status other than 2xx, too large or too slow.
    """
    with _Visit(url, seconds) as visit:
        answer, announced = visit.open()
        if announced is not None and announced > max_bytes:
            raise SetrError(f"{url}: {announced:,} bytes, above the limit of {max_bytes:,}")
        kind = answer.headers.get_content_type()
        if kind.startswith("video/") or kind == "multipart/x-mixed-replace":
            raise SetrError(
                f"{url}: sends a video ({kind}), not an image; to read it as a stream, let the "
                "address end in .mjpg, such as by adding ?.mjpg"
            )
        data = bytearray()
        while block := answer.read1(1 << 16):
            data += block
            if len(data) > max_bytes:
                raise SetrError(f"{url}: larger than the limit of {max_bytes:,} bytes")
        visit.require_all(len(data), announced)
        return bytes(data)


def download_file(url: str, path: Path) -> None:
    """Download a file of any size, with a progress bar on a terminal; it appears when complete.

    Args:
        url: as for `download`.

    Raises:
        SetrError: as `download`, but for any size and time, as long as something comes; or the file
            cannot be written.
    """
    with replacing(path) as part, _Visit(url, SECONDS, whole=False) as visit:
        answer, announced = visit.open()
        with open(part, "wb") as file, _shown(answer, path.name, announced) as source:
            shutil.copyfileobj(source, file, 1 << 20)
        visit.require_all(part.stat().st_size, announced)


def _shown(answer: Any, name: str, announced: int | None) -> Any:
    """An answer that shows on a terminal how far it has been read."""
    from rich.console import Console
    from rich.progress import wrap_file

    if announced is None or not sys.stderr.isatty():
        return nullcontext(answer)
    return wrap_file(answer, announced, description=name, console=Console(stderr=True))


class _Visit:
    """A connection to a server, with those that it redirects to; a context manager.

    All that goes wrong becomes a `SetrError`.

    Args:
        url: the address.
        seconds: after which it ends, also in the middle of a line: a timeout of sockets alone
            starts anew with each byte.
        whole: otherwise only each operation takes at most so long.
    """

    def __init__(self, url: str, seconds: float, *, whole: bool = True) -> None:
        self.url, self.seconds = url, seconds
        self.end = time.monotonic() + seconds if whole else math.inf
        self.sockets: list[socket.socket] = []
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _handler(urllib.request.HTTPHandler, HTTPConnection, self._join),
            _handler(urllib.request.HTTPSHandler, HTTPSConnection, self._join),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self.opener.add_handler(handler)
        self.answer: Any = None
        self.timer = threading.Timer(seconds, self._hang_up)
        self.timer.daemon = True
        if whole:
            self.timer.start()

    def __enter__(self) -> _Visit:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.timer.cancel()
        if self.answer is not None:
            self.answer.close()
        if isinstance(error, SetrError):
            return
        if isinstance(error, OSError | HTTPException | ValueError):
            self._require_time()
            cause = getattr(error, "reason", None) or error
            reason = str(cause) or type(error).__name__
            shown = without_password(self.url)
            raise SetrError(f"{shown}: download failed ({reason:.80})") from None

    def open(self) -> tuple[Any, int | None]:
        """The answer after all redirects, and the bytes that it announces."""
        shown, target = without_password(self.url), self.url
        for _ in range(MAX_REDIRECTS):
            _require_plain(target)
            headers = {"User-Agent": "setr", "Accept": "image/*, */*;q=0.5"}
            request = urllib.request.Request(target, headers=headers)
            left = min(self.seconds, max(0.01, self.end - time.monotonic()))
            try:
                self.answer = self.opener.open(request, timeout=left)
            except urllib.error.HTTPError as error:  # its body is never read
                error.close()
                place = error.headers.get("Location")
                if error.code not in REDIRECTS or not place:
                    reason = " ".join(str(error.reason).split())
                    raise SetrError(
                        f"{shown}: the server answers {error.code} {reason:.120}"
                    ) from None
                target = urljoin(target, place)
                if not is_url(target):
                    raise SetrError(
                        f"{shown}: redirects to {target:.80}, which is not an http address"
                    ) from None
            else:
                announced = self.answer.headers.get("Content-Length", "")
                return self.answer, int(announced) if announced.isdecimal() else None
        raise SetrError(f"{shown}: redirects more than {MAX_REDIRECTS} times")

    def require_all(self, count: int, announced: int | None) -> None:
        """Refuse an answer that ended before its time, or was ended by ours."""
        self._require_time()
        if announced is not None and count < announced:
            shown = without_password(self.url)
            raise SetrError(f"{shown}: ended after {count:,} of {announced:,} bytes")

    def _require_time(self) -> None:
        if time.monotonic() >= self.end:
            shown = without_password(self.url)
            raise SetrError(f"{shown}: download not complete after {self.seconds:g} s") from None

    def _join(self, connected: socket.socket) -> None:
        self.sockets.append(connected)
        if time.monotonic() >= self.end:
            self._hang_up()

    def _hang_up(self) -> None:
        for connected in self.sockets:
            with suppress(OSError):  # closed already
                connected.shutdown(socket.SHUT_RDWR)


def _require_plain(url: str) -> None:
    """Refuse an address without a host, or with a user."""
    parts = split_url(url)
    shown = without_password(url)
    if not is_url(url) or not parts.hostname:
        raise SetrError(f"{shown}: give an address that begins with http:// or https://")
    if "@" in parts.netloc:
        raise SetrError(
            f"{shown}: files are downloaded without a user; leave it out of the address, or "
            "download the file first"
        )


def _handler(kind: Any, connection: Any, join: Callable[[socket.socket], None]) -> Any:
    """A handler of urllib for http or https, which passes on the socket of each connection."""

    class Connection(connection):
        def connect(self) -> None:
            super().connect()
            join(self.sock)

    class Handler(kind):
        def do_open(self, _: Any, request: Any, **options: Any) -> Any:
            return super().do_open(Connection, request, **options)

    return Handler()
