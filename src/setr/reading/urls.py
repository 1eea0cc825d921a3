"""Images from the web: http and https alone, at most so many bytes, within so many seconds.

Whoever passes addresses on from strangers lets them reach every machine this one reaches; so
nothing here is used unless the user asks for it.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from setr.errors import SetrError

MAX_BYTES = 100 << 20
"""Larger files are refused."""
SECONDS = 30.0
"""Until an address must have answered, and again until its file must be here."""


def is_url(text: str) -> bool:
    """Whether a source is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def download(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """The bytes behind an address.

    Args:
        url: http or https; redirections may lead to these only.
        max_bytes: larger files are refused, if possible before they are read.
        seconds: for each wait, and for all of it.

    Raises:
        SetrError: another scheme, no answer, an answer other than 200, too large or too slow.
    """
    if not is_url(url) or not urlsplit(url).hostname:
        raise SetrError(f"{url}: give an address that begins with http:// or https://")
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
            while block := answer.read1(1 << 16):
                data += block
                if len(data) > max_bytes:
                    raise SetrError(f"{url}: larger than the limit of {max_bytes:,} bytes")
                if time.monotonic() > end:
                    raise SetrError(f"{url}: not here after {seconds:g} s")
            if announced.isdigit() and len(data) < int(announced):
                raise SetrError(f"{url}: cut off after {len(data):,} of {int(announced):,} bytes")
    except urllib.error.HTTPError as error:
        reason = " ".join(str(error.reason).split())
        raise SetrError(f"{url}: the server answers {error.code} {reason:.120}") from None
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, SetrError):
            raise
        cause = getattr(error, "reason", None) or error
        raise SetrError(f"{url}: no download ({str(cause) or type(error).__name__:.80})") from None
    return bytes(data)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone; Python's own would also follow to ftp."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> Any:
        """The next request."""
        if not is_url(newurl):
            raise SetrError(f"{req.full_url}: leads to {newurl:.80}, which is no http address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
