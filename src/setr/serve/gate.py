"""ASGI middleware for every request: request id, host, API key, log, headers, errors as JSON.

It wraps the whole app, so it also sees what the framework itself refuses. The log has one JSON
object per request on stderr, never with image content, file names, query strings or keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from setr.serve.hosts import Hosts
from setr.serve.limits import Refusal
from setr.serve.service import Service

OPEN_ROUTES = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
"""Routes that need no key: static pages and health checks."""

CHUNK = 256 * 1024
"""Bytes of an answer that are sent at a time."""

ROUTES = (*sorted(OPEN_ROUTES), "/metrics", "/v1/models", "/v1/segment", "/v1/attention")
"""Labels in log and metrics; any other path is `other`, so that clients cannot add labels."""


class Keys:
    """API keys, kept as digests; without any, every request is let in.

    Args:
        keys: in ASCII, which no client re-encodes.
        open_metrics: `/metrics` needs no key.
    """

    def __init__(self, keys: Iterable[str] = (), *, open_metrics: bool = False) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._open = OPEN_ROUTES | ({"/metrics"} if open_metrics else set())

    def guard(self, path: str) -> bool:
        """Whether a path needs a key."""
        return bool(self._digests) and path not in self._open

    def check(self, headers: Headers) -> None:
        """Refuse a request without a valid key in `Authorization: Bearer` or `X-API-Key`.

        Raises:
            Refusal: 401.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode()).digest()
        # a list, so that all are compared and the time reveals nothing
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):  # noqa: C419
            raise Refusal(401, "key", "give a valid key: Authorization: Bearer KEY")


class Gate:
    """ASGI layer around the app.

    Args:
        service: what its routes share.
        keys: API keys.
        hosts: names the server answers to.
        log: whether to write the access log.
    """

    def __init__(
        self, app: Any, service: Service, keys: Keys, hosts: Hosts, *, log: bool = True
    ) -> None:
        self.app, self.service, self.keys, self.hosts, self.log = app, service, keys, hosts, log
        self.limits, self.metrics = service.limits, service.metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one connection of any type."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self, _without_host(scope), receive, send).run()


def _without_host(scope: Any) -> Any:
    """Of a request to a proxy, for `http://HOST/PATH`, one for PATH at HOST (RFC 9112, 3.2.2)."""
    absolute = re.match(rb"(?i)https?://([^/]*)(.*)", scope["raw_path"])
    if not absolute:
        return scope
    host, path = absolute[1], absolute[2] or b"/"
    headers = [(b"host", host), *(h for h in scope["headers"] if h[0] != b"host")]
    return {**scope, "path": unquote(path.decode()), "raw_path": path, "headers": headers}


def refuse(scope: Any, refusal: Refusal) -> JSONResponse:
    """The answer to a refused request; its code goes into the log."""
    scope["state"]["note"]["error"] = refusal.code
    headers = dict(refusal.headers)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(refusal.content, refusal.status, headers)


class _Exchange:
    """One request and its answer."""

    def __init__(self, gate: Gate, scope: Any, receive: Any, send: Any) -> None:
        self.gate, self.scope, self.receive, self._send = gate, scope, receive, send
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
        self.began = time.monotonic()
        self.status, self.sent, self.received = 0, 0, 0
        self.complete = False
        self.more_to_read = (
            "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        )
        self.only_head = scope["method"] == "HEAD"  # a GET whose answer has no body
        self.note: dict[str, Any] = {}
        self.until_sent = contextlib.ExitStack()  # closed when the answer has been sent
        scope.setdefault("state", {}).update(
            began=self.began, note=self.note, until_sent=self.until_sent
        )

    async def run(self) -> None:
        try:
            try:
                self._check()
            except Refusal as refusal:
                await refuse(self.scope, refusal)(self.scope, self.read, self.send)
            else:
                asked = {**self.scope, "method": "GET"} if self.only_head else self.scope
                await self.gate.app(asked, self.read, self.send)
        except TimeoutError:
            self.note["error"] = "answer not taken"
            raise ConnectionAbortedError from None
        except Exception:  # the app has answered 500 by now
            print(f"setr: request {self.id}", file=sys.stderr)
            traceback.print_exc()
            if not self.complete:
                raise ConnectionAbortedError from None
        finally:
            self.until_sent.close()
            self._record()

    def _check(self) -> None:
        path = self.scope["path"]
        if {"transfer-encoding", "content-length"} <= {*self.headers.keys()}:
            told = "the body has Transfer-Encoding and Content-Length: see RFC 9112; leave one out"
            raise Refusal(400, "http", told)
        self.gate.hosts.check(self.headers)
        if self.gate.keys.guard(path):
            self.gate.keys.check(self.headers)
        elif path not in OPEN_ROUTES:  # a page of another site has no key
            self.gate.hosts.check_page(self.headers)

    async def read(self) -> Any:
        """The next part of the body."""
        message = await self.receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.more_to_read = message.get("more_body", False)
        return message

    async def send(self, message: Any) -> None:
        """Add our headers, and send all in parts with a time limit each."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
            if self.more_to_read:
                headers["Connection"] = "close"
            await self._send_in_time(message)
            return
        body = b"" if self.only_head else message.get("body", b"")
        more = message.get("more_body", False)
        for start in range(0, len(body), CHUNK):
            part = {"type": message["type"], "body": body[start : start + CHUNK], "more_body": True}
            await self._send_in_time(part)
            self.sent += len(part["body"])
        if not more:
            await self._discard()
            last = {"type": message["type"], "body": b"", "more_body": False}
            await self._send_in_time(last)
            self.complete = True

    async def _send_in_time(self, message: Any) -> None:
        with anyio.fail_after(self.gate.limits.send_seconds):
            await self._send(message)

    async def _discard(self) -> None:
        """Read the rest of a body for a moment, where the answer was sent before its end.

        Closing at once would reset the connection, and many clients would lose the answer.
        """
        start = self.received
        with anyio.move_on_after(2.0):
            while self.more_to_read and self.received - start < 16 << 20:
                message = await self.read()
                if message["type"] == "http.disconnect":
                    return

    def _record(self) -> None:
        seconds = time.monotonic() - self.began
        path = self.scope["path"]
        route = path if path in ROUTES else "other"
        self.gate.metrics.requests.labels(route, str(self.status)).inc()
        self.gate.metrics.seconds.labels(route).observe(seconds)
        if not self.gate.log:
            return
        client = self.scope.get("client")
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": self.id,
            "client": client[0] if client else None,
            "method": self.scope["method"],
            "route": route,
            "status": self.status,
            "ms": round(1000 * seconds, 1),
            "bytes_in": self.received,
            "bytes_out": self.sent,
            **self.note,
        }
        sys.stderr.write(json.dumps(line) + "\n")  # at once: threads' lines stay apart
        sys.stderr.flush()
