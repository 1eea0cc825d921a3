"""Writing files: each appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from setr.errors import SetrError, UsageError, first_line
from setr.reading.files import require_alive

_OF_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""Errors by which file systems refuse names that are too long, or have characters they lack."""


class NameRefusedError(SetrError):
    """A name under which no file can be written here."""


def cannot_write(path: object, error: Exception) -> SetrError:
    """The error of a file that cannot be written, one of its own for a name that is the reason."""
    reason = getattr(error, "strerror", None) or first_line(error)
    of_name = isinstance(error, ValueError) or getattr(error, "errno", None) in _OF_NAMES
    kind = NameRefusedError if of_name else SetrError
    return kind(f"{path}: cannot write: {reason}")


@contextlib.contextmanager
def write_errors(path: object) -> Iterator[None]:
    """Makes errors of the file system in the block those of `cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing.

    Raises:
        SetrError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetrError(f"{folder}: cannot make this folder: {error.strerror}") from None


def require_writable(folder: Path, option: str) -> None:
    """Refuse an output folder that cannot be written to, before work begins.

    Args:
        folder: need not exist yet; then its nearest existing parent is tested.
        option: of the command line that sets it, for the message.
    """
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    require_alive(existing)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        where = "" if existing == folder else f" in {existing}"
        raise UsageError(
            f"{folder}: cannot write{where}: {error.strerror}; choose another folder with {option}"
        ) from None


def cache_folder(kind: str) -> Path:
    """Folder for cached files of one kind: below `SETR_CACHE`, else `~/.cache/setr`."""
    return Path(os.environ.get("SETR_CACHE") or os.path.expanduser("~/.cache/setr"), kind)


def part_of(path: Path) -> Path:
    """The hidden name of an unfinished file; the next run overwrites what a killed one left."""
    mark = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]
    return path.with_name(f".{mark}.part")


@contextlib.contextmanager
def replacing(path: Path, *, mark: str | None = None) -> Iterator[Path]:
    """A hidden file to write, which takes the place of `path` in the end, or goes after an error.

    Args:
        mark: name for the hidden file, random by default. With a fixed one, leftovers of a killed
            process are overwritten by the next; only one writer at a time may use it.
    """
    part = path.with_name(f".{mark or uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, *, mark: str | None = None) -> None:
    """Write a file atomically: it appears under its name when complete.

    Args:
        mark: see `replacing`.

    Raises:
        SetrError: cannot be written.
    """
    try:
        with replacing(path, mark=mark) as part:
            part.write_bytes(data)
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Write a text atomically; names of files in it may be no text."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_rows(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows, the head first, as CSV; the file is written atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as `json_bytes`; the file is written atomically."""
    write_bytes(path, json_bytes(values))


def json_bytes(values: dict[str, Any]) -> bytes:
    """Values, also NumPy numbers, as the text of a JSON file."""
    return (json.dumps(values, indent=1, default=float) + "\n").encode()
