"""A server in a thread for the tests: tiny models, real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from setr.data import scenes
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.model_info import ModelInfo
from setr.serve.app import create_app
from setr.serve.gate import Gate, Keys
from setr.serve.hosts import Hosts
from setr.serve.limits import Limits
from setr.serve.models import Models
from setr.serve.server import Server, listen
from tests.conftest import tiny_model


def save_models(root: Path) -> list[str]:
    """Two tiny models of one set of classes, as directories `pup` and `mla`."""
    for seed, name in enumerate(("pup", "mla")):
        torch.manual_seed(seed)
        model = tiny_model(name, num_classes=len(scenes.CLASSES))
        for module in (model.neck, model.decoder):  # random weights as they are see one class
            for weights in module.parameters():
                if weights.ndim > 1:
                    torch.nn.init.normal_(weights, std=0.5)
        save_pretrained(root / name, model, ModelInfo(labels=scenes.LABELS, recipe="tiny"))
    return [str(root / "pup"), str(root / "mla")]


def photo(index: int = 0, height: int = 40, width: int = 48) -> bytes:
    """A PNG file."""
    return encode_png(scenes.draw("serve", index, size=max(height, width))[0][:height, :width])


@contextlib.contextmanager
def running(
    models: Models,
    limits: Limits,
    keys: tuple[str, ...] = (),
    port: int = 0,
    *,
    open_metrics: bool = False,
    hosts: Hosts | None = None,
) -> Iterator[tuple[str, Gate]]:
    """The address of a server, and its app."""
    app = create_app(models, limits, Keys(keys, open_metrics=open_metrics), hosts, log=True)
    with listening(app, limits, port) as (url, _):
        yield url, app


@contextlib.contextmanager
def listening(app: Gate, limits: Limits, port: int = 0) -> Iterator[tuple[str, Server]]:
    """The address of a server for an app, and the server."""
    sock = listen("127.0.0.1", port)
    server = Server(app, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield "http://127.0.0.1:%d" % sock.getsockname()[1], server  # noqa: UP031
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()


def connect(url: str, *, buffer: int | None = None) -> socket.socket:
    """A plain connection to the server at `url`, that takes in `buffer` bytes unread."""
    host, port = url.removeprefix("http://").split(":")
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(120)
    sock.connect((host, int(port)))
    return sock


def request(data: bytes, query: str = "") -> bytes:
    """A request for a mask as it goes over the wire."""
    head = (
        f"POST /v1/segment?{query} HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def until(condition: Any, seconds: float = 120.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
