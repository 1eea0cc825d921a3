"""The two static pages, each with a policy that lets it load nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Route


def add_pages(app: FastAPI) -> None:
    """Add `/` and `/docs`."""
    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        text = (resources.files("setr") / "serve" / name).read_text(encoding="utf-8")
        headers = {"Content-Security-Policy": content_policy(text), "Cache-Control": "no-cache"}
        headers |= {"Referrer-Policy": "same-origin", "X-Frame-Options": "DENY"}
        page = Response(text, media_type="text/html", headers=headers)
        app.routes.append(Route(path, page, methods=["GET"]))


def content_policy(text: str) -> str:
    """A Content-Security-Policy that allows a page its own inline scripts and styles alone."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
