"""Downloading images over http and https, with limits on size and time.

Accepting URLs from untrusted users lets them reach every host this machine can reach (SSRF), so
downloads are disabled unless the user enables them.
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from setr.errors import USAGE, SetrError

MAX_BYTES = 100 << 20
"""Larger files are refused."""
SECONDS = 30.0
"""Timeout of each network operation, and of the whole download."""


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
        seconds: timeout of each network operation, and of the whole download.

    Raises:
        SetrError: another scheme, no response, a status other than 2xx, too large or too slow.
    """
    parts = split_url(url)
    if not is_url(url) or not parts.hostname:
        shown = without_password(url)
        raise SetrError(f"{shown}: give an address that begins with http:// or https://")
    if "@" in parts.netloc:
        raise SetrError(
            f"{without_password(url)}: images are downloaded without a user; leave it out of the "
            "address, or download the image first"
        )
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirect,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "setr", "Accept": "image/*"})
    end = time.monotonic() + seconds
    data = bytearray()
    try:
        with opener.open(request, timeout=seconds) as answer:
            announced = answer.headers.get("Content-Length", "")
            if announced.isdigit() and int(announced) > max_bytes:
                raise SetrError(
                    f"{url}: {int(announced):,} bytes, above the limit of {max_bytes:,}"
                )
            kind = answer.headers.get_content_type()
            if kind.startswith("video/") or kind == "multipart/x-mixed-replace":
                raise SetrError(
                    f"{url}: sends a video ({kind}), not an image; to read it as a stream, let the "
                    "address end in .mjpg, such as by adding ?.mjpg"
                )
            while block := answer.read1(1 << 16):
                data += block
                if len(data) > max_bytes:
                    raise SetrError(f"{url}: larger than the limit of {max_bytes:,} bytes")
                if time.monotonic() > end:
                    raise SetrError(f"{url}: download not complete after {seconds:g} s")
            if announced.isdigit() and len(data) < int(announced):
                raise SetrError(f"{url}: ended after {len(data):,} of {int(announced):,} bytes")
    except urllib.error.HTTPError as error:
        reason = " ".join(str(error.reason).split())
        raise SetrError(f"{url}: the server answers {error.code} {reason:.120}") from None
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, SetrError):
            raise
        cause = getattr(error, "reason", None) or error
        reason = str(cause) or type(error).__name__
        raise SetrError(f"{url}: download failed ({reason:.80})") from None
    return bytes(data)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only; Python's handler also allows ftp."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> Any:
        """The redirected request."""
        if not is_url(newurl):
            raise SetrError(
                f"{req.full_url}: redirects to {newurl:.80}, which is not an http address"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)
