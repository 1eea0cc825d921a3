"""The manifest of a prediction run: the outcome of every image, one line of JSON each.

Lines are appended as images are done. A process that is killed loses at most the line it was
writing; the next run over the same inputs drops that incomplete line and continues. A line is kept
while the run's settings and the input are the same and its files exist; otherwise the image is done
again and the line replaced, so that an input never has two outcomes.

A folder holds `manifest.jsonl`, which is appended to. Object stores cannot append: there rows go to
`manifest-000000.jsonl`, … and are joined into `manifest.jsonl` at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from setr._extras import import_extra
from setr.errors import SetrError, UsageError
from setr.processes import lock
from setr.reading.files import printable
from setr.reading.parsed import json_of
from setr.reading.storage import Storage, read_range
from setr.writing import cannot_write, make_folder, write_errors

Row = dict[str, Any]
PART_ROWS, PART_SECONDS = 500, 30.0
"""On object stores, rows are written when there are this many or this much time has passed."""


class Manifest:
    """Outcomes of one output folder, opened by one process at a time.

    Args:
        storage: the output folder.
        stem: file name without ending.
        settled: whether a row is up to date; others are dropped, and their images done again.

    Attributes:
        done: whether an image succeeded, by name of the input.
        packs: output archives that rows name.
        dropped: how many outdated rows were dropped.

    Raises:
        SetrError: another process is writing it, or it is not a manifest.
    """

    def __init__(self, storage: Storage, stem: str, settled: Callable[[Row], bool]) -> None:
        self.storage, self.stem = storage, stem
        self.done: dict[str, bool] = {}
        self.packs: set[str] = set()
        self._waiting: list[bytes] = []
        self._since = time.monotonic()
        self._fd = -1
        if not storage.remote:
            make_folder(Path(storage.root))
            self._open()
        self.dropped = self._load(settled)
        self._part = len(self._parts())

    def append(self, rows: Iterable[Row]) -> None:
        """Add outcomes."""
        rows = list(rows)
        data = [json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows]
        self.done.update((row["name"], row["status"] == "ok") for row in rows)
        if self._fd >= 0:
            self._write(b"".join(data))
            return
        self._waiting += data
        if len(self._waiting) >= PART_ROWS or time.monotonic() - self._since > PART_SECONDS:
            self._flush()

    def rows(self) -> Iterator[Row]:
        """All outcomes, in the order they were written."""
        for line in self._lines():
            row = _parsed(line)
            if row is not None:
                yield row

    def close(self) -> None:
        """Write the remaining rows; on object stores, join the parts."""
        self._release()
        if self.storage.remote:
            self._flush()
            if self._parts():
                self._replace(list(self._lines()))

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def file(self) -> str:
        """Name of the file in the storage."""
        return f"{self.stem}.jsonl"

    def _open(self) -> None:
        path = self.storage.path(self.file)
        flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self._fd, _ = lock.open_locked(path, flags, "flock")
        except BlockingIOError:
            raise UsageError(
                f"{path}: another run is writing it; wait for it, or use --shard i/n"
            ) from None
        except OSError as error:
            raise cannot_write(path, error) from None

    def _write(self, data: bytes) -> None:
        with write_errors(self.storage.path(self.file)):
            while data:
                data = data[os.write(self._fd, data) :]

    def _flush(self) -> None:
        if self._waiting:
            self.storage.write(f"{self.stem}-{self._part:06}.jsonl", b"".join(self._waiting))
            self._part += 1
        self._waiting, self._since = [], time.monotonic()

    def _parts(self) -> list[str]:
        names = self.storage.names(f"{self.stem}-") if self.storage.remote else []
        return [n for n in names if n[len(self.stem) + 1 : -6].isdigit() and n.endswith(".jsonl")]

    def _lines(self) -> Iterator[bytes]:
        if self.storage.remote:
            whole = [self.file] if self.storage.exists(self.file) else []
            for name in whole + self._parts():
                yield from read_range(self.storage.path(name)).splitlines(keepends=True)
            return
        try:
            with open(self.storage.path(self.file), "rb") as file:
                yield from file
        except FileNotFoundError:
            return

    def _load(self, settled: Callable[[Row], bool]) -> int:
        """Read the existing rows and drop outdated ones; returns how many were dropped."""
        sieve, lines, torn = _Sieve(settled), 0, 0
        for lines, row in enumerate(self._existing(), 1):
            if row is None:
                torn += 1
            else:
                sieve.add(lines, row)
        kept, self.packs = sieve.kept()
        self.done = dict(kept.values())
        if len(kept) < lines:
            self._replace(line for number, line in enumerate(self._lines(), 1) if number in kept)
        return lines - torn - len(kept)

    def _existing(self) -> Iterator[Row | None]:
        """The row of each line; None for a line that was not written to its end."""
        for number, line in enumerate(self._lines(), 1):
            row = _parsed(line)
            if row is None and line.endswith(b"\n"):
                path = self.storage.path(self.file)
                raise SetrError(
                    f"{path}: line {number} is not an outcome; use another folder with -o"
                )
            yield row

    def _replace(self, lines: Iterable[bytes]) -> None:
        parts, was_open, data = self._parts(), self._fd >= 0, b"".join(lines)
        if lock.fcntl is None:  # Windows, which does not replace a file that is open
            self._release()
        self.storage.write(self.file, data)
        for name in parts:
            self.storage.delete(name)
        if was_open:
            self._release()
            self._open()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class _Sieve:
    """Finds the rows that stay: the first one of each image, if it is up to date.

    The rows of a pack stay or go together: it is written anew if one of its images is done again.
    """

    def __init__(self, settled: Callable[[Row], bool]) -> None:
        self._settled = settled
        self._names: dict[int, tuple[str, bool]] = {}  # by line, and whether the image succeeded
        self._seen: set[str] = set()
        self._packs: dict[int, str] = {}  # by line
        self._sizes: dict[str, int] = {}
        self._broken: set[str] = set()

    def add(self, line: int, row: Row) -> None:
        """Take the next row."""
        if "pack" in row:
            self._packs[line], size = row["pack"]
            self._sizes[self._packs[line]] = size
        if row["name"] not in self._seen and self._settled(row):
            self._seen.add(row["name"])
            self._names[line] = row["name"], row["status"] == "ok"
        elif line in self._packs:
            self._broken.add(self._packs[line])

    def kept(self) -> tuple[dict[int, tuple[str, bool]], set[str]]:
        """Name and success of the rows that stay, by line; and the packs that stay."""
        rows = Counter(self._packs.values())
        incomplete = {pack for pack, size in self._sizes.items() if rows[pack] != size}
        broken = self._broken | incomplete
        names = {n: value for n, value in self._names.items() if self._packs.get(n) not in broken}
        return names, set(self._packs.values()) - broken


def _parsed(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None  # torn
    try:
        row = json_of(line)
    except ValueError:
        return None
    return row if _is_row(row) else None


def _is_row(row: Any) -> bool:
    """Whether a line has what every row has, and fields that are read here are of their type."""
    if not isinstance(row, dict) or not all(row.get(name) for name in ("name", "status", "run")):
        return False
    return all(_FITS[name](value) for name, value in row.items() if name in _FITS)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_FITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "input", "status", "error", "run", "stamp", "output"), _is_text),
    **dict.fromkeys(("width", "height"), lambda value: type(value) is int and 0 < value < 1 << 31),
    "files": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "classes": lambda value: isinstance(value, dict) and all(map(_is_share, value.values())),
    "pack": lambda value: isinstance(value, list) and list(map(type, value)) == [str, int],
}
"""By field, whether a value is one that is written there."""


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def write_parquet(manifest: Manifest) -> str:
    """Write the same rows as a Parquet file beside the manifest; returns its name."""
    pa = import_extra("pyarrow", "parquet", "--manifest parquet")
    pq = import_extra("pyarrow.parquet", "parquet", "--manifest parquet")
    columns: dict[str, Any] = {
        "name": pa.string(), "input": pa.string(), "status": pa.string(), "error": pa.string(),
        "width": pa.int32(), "height": pa.int32(), "files": pa.list_(pa.string()),
        "classes": pa.map_(pa.string(), pa.float64()),
        "area_m2": pa.map_(pa.string(), pa.float64()), "run": pa.string(), "stamp": pa.string(),
    }  # fmt: skip
    rows = [
        {
            **row,
            "name": printable(row["name"]),
            "input": printable(row.get("input", "")),
            "files": [printable(file) for file in row.get("files", [])],
            "classes": list(row.get("classes", {}).items()),
            "area_m2": list(row.get("area_m2", {}).items()),
            "pack": row.get("pack", [None])[0],
        }
        for row in manifest.rows()
    ]
    schema = pa.schema([*columns.items(), ("pack", pa.string())])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    name = f"{manifest.stem}.parquet"
    manifest.storage.write(name, buffer.getvalue().to_pybytes())
    return name
