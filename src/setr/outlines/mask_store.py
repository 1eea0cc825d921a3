"""The folder of drawn masks: hidden until all are complete, and continued after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from setr.data.tile_folder import locked
from setr.errors import SetrError
from setr.images import encode_png
from setr.outlines.drawing import Drawn, Rules
from setr.outlines.index import AnnotatedImage
from setr.outlines.mask_files import MaskFile, Segments
from setr.processes.standard_streams import tell
from setr.reading.made_folders import DRAWN
from setr.writing import make_folder, write_bytes

VERSION = 2
"""Of how masks are drawn."""
_JOURNAL = ".journal"
"""Which masks are complete, and what is in them."""


class Counts(NamedTuple):
    """Pixels of each id in a mask, and of each class over another."""

    pixels: dict[int, int]
    overlaps: Counter[tuple[str, str]]


def counts_of(mask: np.ndarray, overlaps: Counter[tuple[str, str]]) -> Counts:
    """The counts of a mask (H, W) uint8."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return Counts({int(i): int(counts[i]) for i in np.flatnonzero(counts)}, overlaps)


class MaskStore:
    """A context manager for the masks of a folder, which only one process draws at a time.

    They stay hidden, for the next call to continue, if the process is interrupted or killed.

    Args:
        rules: how outlines become ids.

    Raises:
        SetrError: another process draws masks there.
    """

    def __init__(self, root: Path, rules: Rules) -> None:
        self.root, self.rules = root, rules
        self.hidden = root / f".{DRAWN}.part"
        self._lock = locked(root)
        self._done = _read_journal(self.hidden / _JOURNAL)
        self._journal: IO[str] | None = None

    def __enter__(self) -> MaskStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()
        if kind is None or issubclass(kind, SetrError):
            shutil.rmtree(self.hidden, ignore_errors=True)
        elif self._journal is not None:
            tell(f"{self.hidden} keeps the masks that are complete; the same command continues")
        if self._lock is not None:
            os.close(self._lock)

    def key(self, name: str, entry: AnnotatedImage) -> str:
        """A text that changes with the image, its outlines, and how they are drawn."""
        files = [self.root / entry.image]
        for shape in entry.shapes:
            files += [part.path for part in shape.parts if isinstance(part, MaskFile | Segments)]
        states = [(os.fspath(f), s.st_size, s.st_mtime_ns) for f in files if (s := _stat(f))]
        values = VERSION, name, entry, self.rules, states
        return hashlib.blake2b(pickle.dumps(values), digest_size=16).hexdigest()

    def known(self, name: str, key: str) -> Counts | None:
        """What is in a mask that an interrupted process completed; None to draw it."""
        return self._done.get(key) if (self.hidden / f"{name}.png").is_file() else None

    def save(self, name: str, drawn: Drawn, palette: np.ndarray) -> Counts:
        """Write a mask; several threads may do so at a time.

        Raises:
            SetrError: it cannot be written.
        """
        path = self.hidden / f"{name}.png"
        make_folder(path.parent)
        write_bytes(path, encode_png(drawn.mask, palette=palette))
        return counts_of(drawn.mask, drawn.overlaps)

    def note(self, key: str, counts: Counts) -> None:
        """Remember that a mask is complete; called by one thread only."""
        if key in self._done:
            return
        over = [[*names, pixels] for names, pixels in counts.overlaps.items()]
        if self._journal is None:
            self._journal = (self.hidden / _JOURNAL).open("a", encoding="utf-8")
        self._journal.write(json.dumps([key, list(counts.pixels.items()), over]) + "\n")
        self._journal.flush()

    def put_in_place(self, names: list[str]) -> None:
        """Move masks to their folder; other files there are kept."""
        for name in names:
            path = self.root / DRAWN / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.hidden / f"{name}.png", path)


def _read_journal(path: Path) -> dict[str, Counts]:
    """The counts of complete masks by key; a line that was cut off is left out."""
    found = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                key, pixels, over = json.loads(line)
                overlaps = Counter({(above, below): n for above, below, n in over})
                found[str(key)] = Counts({int(i): int(n) for i, n in pixels}, overlaps)
    return found


def _stat(path: Path) -> Any:
    """The state of a file, or None without one."""
    try:
        return path.stat()
    except OSError:
        return None
