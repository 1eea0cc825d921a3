"""Reads the image from a request body: raw bytes or a multipart form.

A body is refused as soon as it exceeds the limit, not after it was buffered; one that arrives too
slowly is refused, too. Forms are parsed by a thread, since a hostile one takes longer. The file
name in a form is never used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import anyio
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from setr.serve.limits import Admission, Refusal

FIELD = "image"
"""Name of the form field that holds the image."""

MAX_BOUNDARIES = 100
"""Most lines in a form that begin as a boundary; each takes the parser some microseconds."""

RAW_TYPES = ("image/png", "image/jpeg", "image/webp", "image/tiff", "application/octet-stream")
"""Content types listed in the OpenAPI document; any other `image/…` is taken too."""


class Gone(Exception):  # noqa: N818  an outcome, not a fault
    """The client hung up."""


@asynccontextmanager
async def body_bytes(request: Request, admission: Admission) -> AsyncIterator[bytearray]:
    """The body of a request with an image, counted in `admission` while in use.

    Raises:
        Refusal: 408 too slow, 413 too large, 415 another type, 429 other large bodies are inside.
        Gone: the client hung up.
    """
    _kind(request.headers)
    held = 0
    try:
        body = bytearray()
        try:
            with anyio.fail_after(admission.limits.body_seconds):
                async for chunk in _chunks(request, admission.limits.max_bytes):
                    admission.bytes.take(len(chunk))
                    held += len(chunk)
                    body += chunk
        except TimeoutError:
            seconds = f"{admission.limits.body_seconds:g}"
            raise Refusal(
                408, "slow", f"the body did not arrive within {seconds} seconds"
            ) from None
        except ClientDisconnect:
            raise Gone from None
        yield body
    finally:
        admission.bytes.give_back(held)


def image_of(headers: Headers, body: bytearray) -> bytes:
    """The bytes of the image in a body, which is emptied; takes long for some forms.

    Raises:
        Refusal: 400, empty or a broken form.
    """
    data = bytes(body)
    body.clear()
    if _kind(headers) == "form":
        data = asyncio.run(_file_of_form(headers, data))
    if not data:
        raise Refusal(400, "empty", "the image is empty (0 bytes)")
    return data


def _kind(headers: Headers) -> Literal["raw", "form"]:
    """What a body is.

    Raises:
        Refusal: 415, no image.
    """
    kind = headers.get("content-type", "application/octet-stream")
    kind = kind.partition(";")[0].strip().lower()
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "content_type", "send the image itself, without Content-Encoding")
    if kind == "multipart/form-data":
        return "form"
    if kind == "application/octet-stream" or kind.startswith("image/"):
        return "raw"
    raise Refusal(
        415,
        "content_type",
        "send the bytes of an image as image/… or application/octet-stream, or a form: "
        "curl -F image=@photo.jpg",
    )


async def _chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives, up to `limit` bytes."""
    too_large = Refusal(413, "too_large", f"the body is above the limit of {limit:,} bytes")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limit:
            raise too_large
        yield chunk


class _InMemory(MultiPartParser):
    """Keeps files in memory, where the limit on the body bounds them; nothing touches a disk."""

    spool_max_size = 1 << 62


async def _file_of_form(headers: Headers, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        _, options = parse_options_header(headers["content-type"])
        if body.count(b"\r\n--" + options.get(b"boundary", b"")) > MAX_BOUNDARIES:
            raise MultiPartException("too many boundaries")
        parser = _InMemory(headers, stream(), max_files=1, max_fields=16)
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:
        reason = str(getattr(error, "message", "")) or "no boundary"
        raise Refusal(400, "form", f"the form cannot be read ({reason:.80})") from None
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise Refusal(400, "form", f"the form has no file in a field called '{FIELD}'")
        if others := sorted(form.keys() - {FIELD}):
            raise Refusal(
                400,
                "form",
                f"the form has a field '{others[0]:.80}' beside '{FIELD}'; parameters go into the "
                "address, as ?format=json",
            )
        return await file.read()
    finally:
        await form.close()
