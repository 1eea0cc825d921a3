"""The listening side: sockets, timeouts for slow clients, and a graceful shutdown.

uvicorn has no timeout for headers, nor for a client that never reads its answer; the protocol here
has both. On SIGTERM, SIGINT or SIGHUP the server stops listening, answers the requests it has, and
exits with 0, even if a thread is still computing when the grace period is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from setr.errors import OK, SetrError, UsageError
from setr.processes.interrupt import stop_signals
from setr.serve.gate import Gate
from setr.serve.limits import Limits, Refusal

PART_WAY = 5.0
"""Seconds a closing connection may take to flush what its client has not taken yet."""
LINGER = 2.0
"""Seconds for which the input of a refused client is still read, and dropped."""
MOST_FILES = 10_240
"""Open files that are asked for; macOS grants no more (its OPEN_MAX)."""
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of accepting a connection that asyncio tries again a second later."""
SAID_FOR = 60.0
"""Seconds for which that is not said again."""


class Listener(socket.socket):
    """A listening socket that fails once, where asyncio would try, and report, a thousand times."""

    _no_room = False

    def accept(self) -> tuple[socket.socket, Any]:
        """As a socket's; "nothing is waiting" just after there was no room for a connection."""
        if self._no_room:
            self._no_room = False
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            self._no_room = error.errno in NO_ROOM
            raise


def listen(host: str, port: int) -> Listener:
    """A listening socket; clients that connect before the server runs wait for it.

    Raises:
        SetrError: the address is taken, is none of this machine, or is empty, which would be all.
    """
    if not host:
        raise UsageError("--host '': give an address; 0.0.0.0 lets other machines in")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = Listener(family, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere it would let two servers share a port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()  # two sockets may be bound to one port as long as neither listens
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SetrError(
            f"{host}:{port}: cannot listen here ({reason}); give another --host or --port"
        ) from None
    return sock


def protocol(limits: Limits) -> type[H11Protocol]:
    """Uvicorn's HTTP protocol with time limits."""

    class PatientProtocol(H11Protocol):
        """Closes connections whose headers arrive too slowly or whose answers are not read."""

        _waiting: Any = None
        _refused = False

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            app = self.app

            async def in_time(scope: Any, receive: Any, send: Any) -> None:
                try:
                    await app(scope, receive, send)
                except BaseException:  # uvicorn only closes, once the client has taken what waits
                    self.loop.call_later(PART_WAY, self.transport.abort)
                    raise

            self.app = in_time

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._await_headers()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Refuse what is not HTTP; closing before all was read would take the answer back."""
            self._refused = True
            self._stop_waiting()
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in mid-answer
                self.transport.abort()
                return
            if self.cycle is not None:  # its app may still be at work
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            body = json.dumps(Refusal(400, "http", f"{msg[:-1]}: see RFC 9112").content).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            for event in (
                h11.Response(status_code=400, headers=[*headers, ("connection", "close")]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.abort)

        def shutdown(self) -> None:
            super().shutdown()
            if self.transport.is_closing():
                self.loop.call_later(PART_WAY, self.transport.abort)

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(limits.send_seconds, self.transport.abort)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self.loop.call_later(limits.send_seconds, self.transport.abort)

        def _await_headers(self) -> None:
            if self._waiting is None:
                self._waiting = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return PatientProtocol


class Server(uvicorn.Server):
    """uvicorn's server; a signal shuts it down gracefully and is not raised again.

    Args:
        app: as `create_app` gives it.
    """

    def __init__(self, app: Gate, limits: Limits) -> None:
        self.service, self._silent_until = app.service, 0.0
        config = uvicorn.Config(
            app,
            http=protocol(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_level="critical",
            access_log=False,
            server_header=False,
            backlog=1024,
            timeout_keep_alive=max(1, round(limits.header_seconds)),
            timeout_graceful_shutdown=max(1, round(limits.drain)),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and only then say so."""
        asyncio.get_running_loop().set_exception_handler(self._handle_fault)
        await super().startup(sockets)
        names = ", ".join(self.service.models.by_name)
        for sock in sockets or []:
            host, port = sock.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"setr: serving {names} on http://{shown}:{port}", file=sys.stderr, flush=True)

    def _handle_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """As asyncio, but one line for connections that wait until others are closed."""
        if "_start_serving" in context["message"]:
            return  # it tries again, but the server has stopped listening meanwhile
        if getattr(context.get("exception"), "errno", None) not in NO_ROOM:
            loop.default_exception_handler(context)
        elif time.monotonic() > self._silent_until:
            self._silent_until = time.monotonic() + SAID_FOR
            print(
                f"setr: no room for another connection ({context['exception'].strerror}); new ones "
                "wait until others close; see `ulimit -n`",
                file=sys.stderr,
                flush=True,
            )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn, which leaves out SIGHUP."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().capture_signals())
            if threading.current_thread() is threading.main_thread():
                for number in stop_signals():
                    before = signal.signal(number, self.handle_exit)
                    stack.callback(signal.signal, number, before)
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop listening, and finish the requests that are running."""
        self.service.draining = True
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def allow_connections() -> None:
    """Raise the soft limit of open files: a thousand idle clients need a thousand of them."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such module
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if now < (wanted := min(most, MOST_FILES)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def quiet_readers() -> None:
    """Silence what readers say of forms and images by strangers; it would mix with the log."""
    for name in ("python_multipart", "setr"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module=r"PIL\.")


def serve(app: Gate, sock: socket.socket, limits: Limits) -> None:
    """Serve until a signal says stop."""
    allow_connections()
    quiet_readers()
    Server(app, limits).run(sockets=[sock])
    if app.service.computing:  # no client waits for it, but Python would wait for the thread
        sys.stderr.flush()
        os._exit(OK)
