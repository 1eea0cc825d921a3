"""A server in a thread for the tests: tiny models, real sockets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from setr import scenes
from setr.hub import ModelInfo, save_pretrained
from setr.serve.app import create_app
from setr.serve.gate import Gate, Keys
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


@contextlib.contextmanager
def running(
    models: Models, limits: Limits, keys: tuple[str, ...] = (), port: int = 0
) -> Iterator[tuple[str, Gate]]:
    """The address of a server, and its app."""
    app = create_app(models, limits, Keys(keys), log=True)
    sock = listen("127.0.0.1", port)
    server = Server(app, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield "http://127.0.0.1:%d" % sock.getsockname()[1], app  # noqa: UP031
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
