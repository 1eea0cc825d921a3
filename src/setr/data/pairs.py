"""Pairs of image and mask files, a million of them in little memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from setr.data.pairing import Found


class Pair(NamedTuple):
    """One image file and its mask file; `mask` is None where only images exist."""

    image: Path
    mask: Path | None


class Pairs(Sequence[Pair]):
    """File names of a split, packed into bytes: a million `Path` objects would take a gigabyte.

    Packed bytes also stay shared between data-loading processes, where objects would be copied.
    """

    def __init__(self, parts: Sequence[Found]) -> None:
        self._parts = [
            (part.root, _Names(part.images), None if part.masks is None else _Names(part.masks))
            for part in parts
        ]
        self.roots = tuple(os.path.abspath(part.root) for part in parts)
        self._length = sum(len(images) for _, images, _ in self._parts)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, index: int | slice) -> Pair | tuple[Pair, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if index < 0:
            index += len(self)
        for root, images, masks in self._parts:
            if 0 <= index < len(images):
                return Pair(root / images[index], None if masks is None else root / masks[index])
            index -= len(images)
        raise IndexError(index)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    def image_name(self, index: int) -> str:
        """An image's path below the root that its file was found in, else its whole path."""
        path = os.path.abspath(self[index].image)
        inside = (Path(path).relative_to(r) for r in self.roots if Path(path).is_relative_to(r))
        return next(inside, Path(path)).as_posix()

    def names(self) -> Iterator[tuple[str, str | None]]:
        """The pairs as plain path strings, which is faster."""
        for root, images, masks in self._parts:
            base = os.path.join(root, "")
            for i in range(len(images)):
                mask = None if masks is None else os.path.join(base, masks[i])
                yield os.path.join(base, images[i]), mask


class _Names:
    """Strings in one buffer."""

    def __init__(self, names: Iterable[str]) -> None:
        buffer, ends = bytearray(), array("q")
        for name in names:
            buffer += os.fsencode(name)
            ends.append(len(buffer))
        self.buffer, self.ends = bytes(buffer), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.buffer[start : self.ends[index]])
