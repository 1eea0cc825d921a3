"""Pairs of image and mask files, stored compactly for data sets of millions of files."""

from __future__ import annotations

import os
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from setr.data.pairing import SplitFiles

T = TypeVar("T")


class Pair(NamedTuple):
    """An image file and its mask file; `mask` is None for images without masks."""

    image: Path
    mask: Path | None


class LazySequence(Sequence[T]):
    """A sequence whose items are made on access; a slice is a tuple of them."""

    @abstractmethod
    def item(self, place: int) -> T:
        """The item at a place, 0 or more and below the length."""

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return tuple(map(self.item, places)) if isinstance(places, range) else self.item(places)

    def __iter__(self) -> Iterator[T]:
        return map(self.item, range(len(self)))


class Pairs(LazySequence[Pair]):
    """File names of a split, packed into bytes: a million `Path` objects would take a gigabyte.

    Forked data-loading workers also share packed bytes, but would copy objects (reference counts).
    """

    def __init__(self, parts: Sequence[SplitFiles]) -> None:
        self._parts = [
            (part.root, Strings(part.images), None if part.masks is None else Strings(part.masks))
            for part in parts
        ]
        self.roots = tuple(os.path.abspath(part.root) for part in parts)
        self._length = sum(len(images) for _, images, _ in self._parts)

    def __len__(self) -> int:
        return self._length

    def item(self, place: int) -> Pair:
        """The pair at a place."""
        for root, images, masks in self._parts:
            if place < len(images):
                return Pair(root / images[place], None if masks is None else root / masks[place])
            place -= len(images)
        raise IndexError(place)

    def part(self, indices: Sequence[int]) -> Pairs:
        """The pairs with these indices, those of one folder or list after those before it."""
        parts, start = [], 0
        for root, images, masks in self._parts:
            own = [i - start for i in indices if start <= i < start + len(images)]
            chosen = None if masks is None else [masks[i] for i in own]
            parts.append(SplitFiles(root, [images[i] for i in own], chosen))
            start += len(images)
        return Pairs(parts)

    def image_name(self, index: int) -> str:
        """An image's path relative to its root folder, or its absolute path outside of these."""
        path = os.path.abspath(self[index].image)
        inside = (Path(path).relative_to(r) for r in self.roots if Path(path).is_relative_to(r))
        return next(inside, Path(path)).as_posix()

    def names(self) -> Iterator[tuple[str, str | None]]:
        """The pairs as strings, which is faster."""
        for root, images, masks in self._parts:
            base = os.path.join(root, "")
            for i in range(len(images)):
                mask = None if masks is None else os.path.join(base, masks[i])
                yield os.path.join(base, images[i]), mask


class NamedPairs(LazySequence[Pair]):
    """Paths that name samples without files of their own, made on access.

    Args:
        folder: first part of the paths.
        names: of the samples.
        mask_ending: what a mask's name has behind that of its image.
    """

    def __init__(self, folder: Path, names: Sequence[str], mask_ending: str = "") -> None:
        self.folder, self.samples, self.mask_ending = folder, names, mask_ending

    def __len__(self) -> int:
        return len(self.samples)

    def item(self, place: int) -> Pair:
        """The pair at a place."""
        name = self.samples[place]
        return Pair(self.folder / name, self.folder / f"{name}{self.mask_ending}")


class Numbers(LazySequence[str]):
    """Numbers from 0 with leading zeros: 0000012."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def item(self, place: int) -> str:
        """The number at a place."""
        return f"{place:07d}"


class Strings(LazySequence[str]):
    """A sequence of strings in one buffer."""

    def __init__(self, names: Iterable[str]) -> None:
        buffer, ends = bytearray(), array("q")
        for name in names:
            buffer += name.encode("utf-8", "surrogateescape")  # names of files may be no text
            ends.append(len(buffer))
        self.buffer, self.ends = bytes(buffer), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def item(self, place: int) -> str:
        """The string at a place."""
        start = self.ends[place - 1] if place else 0
        return self.buffer[start : self.ends[place]].decode("utf-8", "surrogateescape")
