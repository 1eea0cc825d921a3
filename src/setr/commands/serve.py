"""`setr serve MODEL…`: an HTTP server and a web page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from setr._extras import import_extra
from setr.arguments.choices import Precision
from setr.commands.parsing import parse, require_at_least, require_within
from setr.commands.shared import Device, Models, Words
from setr.errors import OK, UsageError
from setr.serve.limits import LONGEST, Limits

MEGABYTE = 1 << 20
LEAST = 0.001
"""Lower limit of options in seconds or megabytes that must be positive."""


@dataclass(frozen=True)
class Arguments:
    """Serve models over HTTP, with a page to try them in a browser.

    setr serve runs/mine better=runs/other --port 8080
    """

    models: Models
    """Model directories, Hub names, checkpoints or files of `setr export`; NAME=MODEL gives another
    name than the folder's. Models joined with commas answer as one. The first is the default."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: Annotated[int, tyro.conf.arg(aliases=["-p"])] = 8000
    """Port; 0 takes a free one."""
    api_keys: Path | None = None
    """File with one key per line; requests then need one. SETR_API_KEYS (comma-separated) does the
    same. Without keys everybody who reaches the port is served."""
    allowed_hosts: Words = ()
    """Names by which clients may ask the server, besides its addresses and localhost; * stands for
    any part. Without keys, a server that listens on this machine alone answers to no other name."""
    open_metrics: bool = False
    """/metrics needs no key, for a Prometheus that has none."""
    device: Device = "auto"
    precision: Precision = "auto"
    """Of the forward pass."""
    batch: int = Limits.batch
    """Images of one size that run together."""
    wait_ms: float = 1000 * Limits.wait
    """How long an image waits for others of its size while the model is idle."""
    queue: int = Limits.queue
    """Requests inside at once; more are refused with 429."""
    deadline: float = Limits.deadline
    """Seconds from a request's first byte to its answer."""
    max_mb: float = Limits.max_bytes / MEGABYTE
    """Largest body in megabytes."""
    max_pixels: int = Limits.max_pixels
    """Larger images are refused from their header."""
    max_patches: int = Limits.max_patches
    """Most patches in one pass of a transformer; attention costs their square. An image seen
    whole has at most 4.19 million pixels, too."""
    window: int | None = None
    """Run images by blended windows of so many pixels, so that any size is taken."""
    short_side: int | None = None
    """Scale images to this short side in pixels first, in place of the protocol's; masks keep the
    size of the image."""
    drain: float = Limits.drain
    """Seconds that running requests get after SIGTERM."""
    quiet: bool = False
    """No access log."""


def run(arguments: list[str]) -> int:
    """Load the models, then serve until a signal says stop."""
    given = parse(Arguments, arguments, "serve")
    require_at_least(
        given, 1, "window", "short_side", "batch", "queue", "max_pixels", "max_patches"
    )
    require_within(given, LEAST, LONGEST, "deadline", "drain", "max_mb")
    require_within(given, 0, 1000 * LONGEST, "wait_ms")
    require_within(given, 0, 65_535, "port")
    for package in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
        import_extra(package, "serve", "setr serve")
    from setr.serve.app import create_app
    from setr.serve.gate import Keys
    from setr.serve.hosts import Hosts, is_loopback
    from setr.serve.models import Models
    from setr.serve.server import listen, serve

    limits = Limits(
        max_bytes=int(given.max_mb * MEGABYTE),
        max_pixels=given.max_pixels,
        max_patches=given.max_patches,
        queue=given.queue,
        deadline=given.deadline,
        batch=given.batch,
        wait=given.wait_ms / 1000,
        drain=given.drain,
    )
    known = read_keys(given.api_keys)
    keys = Keys(known, open_metrics=given.open_metrics)
    with listen(given.host, given.port) as sock:
        local = is_loopback(sock.getsockname()[0]) and not known
        hosts = Hosts(given.allowed_hosts, local=local)
        models = Models(
            given.models,
            limits,
            device=given.device,
            precision=given.precision,
            window=given.window,
            short_side=given.short_side,
        )
        serve(create_app(models, limits, keys, hosts, log=not given.quiet), sock, limits)
    return OK


def read_keys(path: Path | None) -> list[str]:
    """Keys of a file and of SETR_API_KEYS.

    Raises:
        SetrError: no such file, a source without keys (which would disable the check), or a key
            that clients cannot send.
    """
    listed = os.environ.get("SETR_API_KEYS")
    keys = [] if listed is None else _usable("SETR_API_KEYS", listed.split(","))
    if path is None:
        return keys
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the keys ({error})") from None
    return keys + _usable(str(path), [line for line in lines if not line.strip().startswith("#")])


def _usable(source: str, listed: list[str]) -> list[str]:
    """The keys of a source, without blank ones."""
    keys = [key.strip() for key in listed if key.strip()]
    if not keys:
        raise UsageError(f"{source}: has no keys; write some, or leave it out")
    for number, key in enumerate(keys, 1):
        if not (key.isascii() and key.isprintable()):
            raise UsageError(
                f"{source}: key {number} is not printable ASCII, as headers are; choose another"
            )
    return keys
