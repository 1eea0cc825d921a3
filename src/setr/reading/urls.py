"""Downloading images over http and https, with limits on size and time.

Accepting URLs from untrusted users lets them reach every host this machine can reach (SSRF), so
downloads are disabled unless the user enables them.
"""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from setr.errors import USAGE, SetrError

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
        shown = without_password(url)
        raise SetrError(f"{shown}: downloads are disabled; allow them with --allow-urls")


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
        raise SetrError(f"{shown}: not an address ({error}); correct it", code=USAGE) from None


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
    target, visit = url, _Visit(seconds)
    with visit:
        try:
            for _ in range(MAX_REDIRECTS):
                _require_plain(target)
                try:
                    with visit.open(target) as answer:
                        return _content(url, answer, max_bytes, visit)
                except urllib.error.HTTPError as error:  # its body is never read
                    error.close()
                    place = error.headers.get("Location")
                    if error.code not in REDIRECTS or not place:
                        reason = " ".join(str(error.reason).split())
                        raise SetrError(
                            f"{url}: the server answers {error.code} {reason:.120}"
                        ) from None
                    target = urljoin(target, place)
                    if not is_url(target):
                        raise SetrError(
                            f"{url}: redirects to {target:.80}, which is not an http address"
                        ) from None
            raise SetrError(f"{url}: redirects more than {MAX_REDIRECTS} times")
        except SetrError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            visit.require_time(url)
            cause = getattr(error, "reason", None) or error
            reason = str(cause) or type(error).__name__
            raise SetrError(f"{url}: download failed ({reason:.80})") from None


def _require_plain(url: str) -> None:
    """Refuse an address without a host, or with a user."""
    parts = split_url(url)
    shown = without_password(url)
    if not is_url(url) or not parts.hostname:
        raise SetrError(f"{shown}: give an address that begins with http:// or https://")
    if "@" in parts.netloc:
        raise SetrError(
            f"{shown}: images are downloaded without a user; leave it out of the address, or "
            "download the image first"
        )


def _content(url: str, answer: Any, max_bytes: int, visit: _Visit) -> bytes:
    """The body of an answer."""
    announced = answer.headers.get("Content-Length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise SetrError(f"{url}: {int(announced):,} bytes, above the limit of {max_bytes:,}")
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
    visit.require_time(url)
    if announced.isdigit() and len(data) < int(announced):
        raise SetrError(f"{url}: ended after {len(data):,} of {int(announced):,} bytes")
    return bytes(data)


class _Visit:
    """Connections that all end when the time is up, also in the middle of a line.

    A context manager. A timeout of sockets alone starts anew with each byte.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(seconds, self._hang_up)
        self.timer.daemon = True
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _handler(urllib.request.HTTPHandler, HTTPConnection, self._join),
            _handler(urllib.request.HTTPSHandler, HTTPSConnection, self._join),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self.opener.add_handler(handler)

    def __enter__(self) -> _Visit:
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()

    def open(self, url: str) -> Any:
        """The answer of a server; redirects are errors, as its other refusals."""
        request = urllib.request.Request(url, headers={"User-Agent": "setr", "Accept": "image/*"})
        return self.opener.open(request, timeout=max(0.01, self.end - time.monotonic()))

    def require_time(self, url: str) -> None:
        """Raise a `SetrError` if the time is up, so that the connection ended for this reason."""
        if time.monotonic() >= self.end:
            raise SetrError(f"{url}: download not complete after {self.seconds:g} s") from None

    def _join(self, connected: socket.socket) -> None:
        self.sockets.append(connected)
        if time.monotonic() >= self.end:
            self._hang_up()

    def _hang_up(self) -> None:
        for connected in self.sockets:
            with suppress(OSError):  # closed already
                connected.shutdown(socket.SHUT_RDWR)


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
