"""Output storage: a local folder, or object storage by its fsspec URL.

Writes are atomic: in folders by a rename, in object stores because an object appears when its
upload is complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from setr.errors import SetrError, UsageError, first_line
from setr.writing import cannot_write, write_bytes

Identity = str | tuple[int, int]
"""What `identity` returns: a URL, or device and inode number of a file."""


def is_address(text: str) -> bool:
    """Whether this is an fsspec URL (s3://…, gs://…, memory://…), not a path."""
    return "://" in text


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        SetrError: no such protocol, or the package it needs is missing.
    """
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    except ImportError as error:
        extra = '; pip install "setr[s3]"' if address.startswith("s3") else ""
        raise SetrError(f"{address}: {first_line(error)}{extra}") from None
    except ValueError as error:
        raise UsageError(f"{address}: {first_line(error)}") from None
    return found


def identity(path: str) -> Identity | None:
    """A key that is equal for different names of one file (such as links); None without a file.

    Args:
        path: a path, or a URL as normalised by its file system.
    """
    if is_address(path) and not path.startswith("file://"):
        return path
    try:
        status = os.stat(path.removeprefix("file://"))
    except (OSError, ValueError):  # no such file, or a name that no file can have
        return None
    return status.st_dev, status.st_ino


def result_test(out: str) -> Callable[[str, str], bool]:
    """A test for earlier results among inputs, for an output folder inside an input folder.

    Returns:
        A function of a file's name relative to the input folder and its full path: whether the file
        lies in `out`.
    """
    inner = _normalised(out)

    @cache
    def prefix(folder: str) -> str:
        """Start of the names of results in an input folder; `/`, with which no name starts."""
        outer = _normalised(folder)
        return inner.removeprefix(outer) or "/" if inner.startswith(outer) else "/"

    def is_result(name: str, path: str) -> bool:
        below_folder = "/" in name and path.endswith(name)
        return below_folder and name.startswith(prefix(path.removesuffix(name)))

    return is_result


def _normalised(folder: str) -> str:
    """A path without links, or a URL as normalised by its file system, with a trailing slash."""
    if is_address(folder):
        store, path = file_system(folder)
        folder = str(store.unstrip_protocol(path)).removeprefix("file://")
    return (folder if is_address(folder) else os.path.realpath(folder)).rstrip("/") + "/"


def read_range(address: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Bytes start .. stop-1 of a file or object; all of it by default.

    Raises:
        SetrError: no such file, or it cannot be read.
    """
    try:
        if is_address(address):
            store, path = file_system(address)
            return store.cat_file(path, start=start, end=stop)
        with open(address, "rb") as file:
            file.seek(start or 0)
            return file.read(-1 if stop is None else stop - (start or 0))
    except FileNotFoundError:
        raise SetrError(f"{address}: no such file") from None
    except SetrError:
        raise
    except Exception as error:  # network and permission errors of many libraries
        raise SetrError(f"{address}: cannot read ({first_line(error)})") from None


class Storage:
    """Files below a folder or URL.

    Args:
        root: the folder, created on the first write, or the URL.

    Raises:
        SetrError: an empty root, or a URL whose package is missing.
    """

    def __init__(self, root: str) -> None:
        if not root or root.endswith("://"):
            raise UsageError(
                f"-o '{root}': names no folder; give one, such as out, or . for this one"
            )
        self.root = root.rstrip("/") or "/"
        self.remote = is_address(root)
        self._store: Any = None
        self._base = self.root
        if self.remote:
            self._store, self._base = file_system(self.root)

    def path(self, name: str) -> str:
        """The full path or URL of a file."""
        return f"{self.root}/{name}"

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it appears when complete.

        Raises:
            NameRefusedError: the file system does not take this name.
            SetrError: cannot be written.
        """
        try:
            if self._store is None:
                path = Path(self.path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
                write_bytes(path, data, mark=mark)
            else:
                self._store.pipe_file(f"{self._base}/{name}", data)
        except SetrError:
            raise
        except Exception as error:
            raise cannot_write(self.path(name), error) from None

    def identities(self, name: str) -> Iterator[Identity | None]:
        """`identity` of the file, or of the folder and its files, that `name` would replace."""
        if self.remote:
            yield identity(self._store.unstrip_protocol(f"{self._base}/{name}"))
            return
        found = identity(self.path(name))
        yield found
        if found and os.path.isdir(self.path(name)):
            yield from (identity(entry.path) for entry in os.scandir(self.path(name)))

    def exists(self, name: str) -> bool:
        """Whether the file, or the folder of a video's frames, exists."""
        if self._store is None:
            return os.path.exists(self.path(name))
        return bool(self._store.exists(f"{self._base}/{name}"))

    def names(self, prefix: str) -> list[str]:
        """Names with this prefix directly below the root, sorted."""
        if self._store is None:
            if not os.path.isdir(self.root):
                return []
            return sorted(n for n in os.listdir(self.root) if n.startswith(prefix))
        self._store.invalidate_cache(self._base)
        try:
            found = self._store.ls(self._base, detail=False)
        except FileNotFoundError:
            return []
        return sorted(n for n in (p.rsplit("/", 1)[-1] for p in found) if n.startswith(prefix))

    def delete(self, name: str) -> None:
        """Remove a file."""
        if self._store is None:
            os.unlink(self.path(name))
        else:
            self._store.rm_file(f"{self._base}/{name}")
