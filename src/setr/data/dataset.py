"""One split of a data set of files; other kinds of data sets derive from it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from setr.arguments.typed import typed
from setr.bands import BandImage, Bands, open_pixels
from setr.data.pairs import Pair, Pairs
from setr.errors import DataError, SetrError, UsageError
from setr.labels import IGNORE, Labels
from setr.reading.gdal import Gaps, without_data
from setr.reading.lazy_image import LazyImage
from setr.reading.masks import read_mask
from setr.reading.pillow import Source

Pixels = np.ndarray | LazyImage | BandImage
"""An image uint8 (H, W, C): an array, or a file that is decoded when indexed."""


class NoDataMask:
    """Training ids (H, W) that are `IGNORE` where the image has no data: `mask[a:b, c:d]`.

    Its areas without data are read on indexing, and only for that window.
    """

    def __init__(self, ids: np.ndarray, gaps: Gaps) -> None:
        self._ids, self._gaps = ids, gaps
        self.shape = ids.shape

    def __getitem__(self, window: slice | tuple[slice, slice]) -> np.ndarray:
        return np.where(self._gaps[window], np.uint8(IGNORE), self._ids[window])


Mask = np.ndarray | NoDataMask
"""Training ids uint8 (H, W): an array, or computed when indexed."""


class Sample(NamedTuple):
    """One decoded example: image uint8 (H, W, C), mask uint8 training ids (H, W).

    The channels are RGB, or the data set's bands.
    """

    image: np.ndarray
    mask: np.ndarray


if TYPE_CHECKING:
    from torch.utils.data import Dataset as TorchDataset

    _Base = TorchDataset[Sample]  # which torch's loaders, `Subset` and `ConcatDataset` ask for
else:
    _Base = object  # what they use is below; the class itself would cost the import of torch


@dataclass(frozen=True)
class Dataset(_Base):
    """One split: pairs of files and the classes of their ids.

    Attributes:
        name: name of the data set.
        split: name of the split.
        labels: classes, and the mapping from ids in the masks to classes.
        pairs: image and mask files.
        notes: warnings about the files.
        bands: bands to read of the images; None for RGB.
    """

    name: str
    split: str
    labels: Labels
    pairs: Sequence[Pair]
    notes: tuple[str, ...] = ()
    bands: Bands | None = field(default=None, kw_only=True)

    decoded: ClassVar[bool] = False
    """Whether samples are arrays in memory, without files that could be checked."""

    @property
    def public_name(self) -> str:
        """The name without its place, for model cards."""
        return Path(self.name).name

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """As `load`; makes iteration and torch's `Subset` and `ConcatDataset` work."""
        return self.load(range(len(self))[operator.index(index)])

    def part(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> Dataset:
        """The samples with these indices, as a split of the same kind, for example a fold.

        Files of several folders or lists stay in the order of these.

        Args:
            indices: from 0, in the order wanted; an index may occur several times.
            split: name of the new split; that of this one by default.

        Raises:
            SetrError: no indices, others than whole numbers below the length, or samples that can
                only be read in sequence.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
            raise UsageError(
                f"indices {chosen.dtype} of shape {chosen.shape}: give a list of whole numbers, "
                "one or more (np.flatnonzero of a mask)"
            )
        if not 0 <= chosen.min() <= chosen.max() < len(self):
            wrong = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise UsageError(
                f"index {wrong}: split '{self.split}' of {self.name} has 0 to {len(self) - 1}"
            )
        return replace(self._part(chosen.tolist()), split=typed(str, split or self.split, "split"))

    def _part(self, indices: list[int]) -> Dataset:
        """The samples with these indices."""
        pairs = self.pairs
        chosen = pairs.part(indices) if isinstance(pairs, Pairs) else [pairs[i] for i in indices]
        return replace(self, pairs=chosen)

    @property
    def version(self) -> str | None:
        """Changes with the content; None for files, whose modification times are compared."""
        return None

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return 3 if self.bands is None else len(self.bands.numbers)

    def image_name(self, index: int) -> str:
        """Unique name of an image in reports: its path below the data set's folder."""
        if isinstance(self.pairs, Pairs):
            return self.pairs.image_name(index)
        return self.pairs[index].image.name

    def names(self) -> Iterator[tuple[str, str | None]]:
        """The files of each pair as strings, which is faster than `pairs`."""
        if isinstance(self.pairs, Pairs):
            return self.pairs.names()
        return ((str(p.image), None if p.mask is None else str(p.mask)) for p in self.pairs)

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """Random order of the samples for one epoch."""
        return rng.permutation(len(self))

    def sources(self, index: int) -> tuple[Source, Source | None]:
        """Image and mask as paths, or as the bytes of files."""
        pair = self.pairs[index]
        return pair.image, pair.mask

    def load(self, index: int) -> Sample:
        """Decode one pair.

        Raises:
            SetrError: unreadable file, different sizes or unknown ids; names the file.
        """
        rows, mask = self.open(index)
        return Sample(rows[:], mask[:])

    def pixels(self, index: int) -> Pixels:
        """One image, decoded lazily.

        Raises:
            SetrError: as `load`, here or on indexing.
        """
        if self.decoded:
            return self.open_raw(index)[0]
        return open_pixels(self.sources(index)[0], self.bands)

    def open(self, index: int) -> tuple[Pixels, Mask]:
        """One pair, decoded lazily: the image and its mask in training ids.

        Raises:
            SetrError: as `load`, here or on indexing.
        """
        rows, raw = self.open_raw(index)
        image = None if isinstance(rows, np.ndarray) else rows.source
        return rows, self.to_train_ids(index, raw, image)

    def open_raw(self, index: int) -> tuple[Pixels, np.ndarray]:
        """As `open`, with the mask as stored: ids (H, W) or colours (H, W, 3)."""
        image_source, mask_source = self.sources(index)
        rows = open_pixels(image_source, self.bands)
        return rows, self.raw_mask(index, mask_source, rows.shape[:2])

    def raw_mask(self, index: int, source: Source | None, size: tuple[int, ...]) -> np.ndarray:
        """Ids (H, W) or colours (H, W, 3) of a mask, whose image has this size (H, W)."""
        pair = self.pairs[index]
        if source is None:
            raise DataError(f"{pair.image}: has no mask")
        raw = read_mask(source, rgb=self.labels.colour_map is not None)
        require_size(pair.mask, raw, size)
        return raw

    def to_train_ids(self, index: int, raw: np.ndarray, image: Source | None) -> Mask:
        """Map a raw mask to training ids uint8 (H, W).

        Pixels that have no data in a GeoTIFF image are ignored.
        """
        try:
            ids = self.labels.to_train_ids(raw)
        except SetrError as error:
            raise SetrError(f"{self.pairs[index].mask}: {error}") from None
        return ids if image is None else self.with_gaps(ids, image)

    def with_gaps(self, ids: np.ndarray, image: Source) -> Mask:
        """Training ids (H, W) that are ignored where a GeoTIFF image has no data."""
        numbers = (1, 2, 3) if self.bands is None else self.bands.numbers
        gaps = without_data(image, numbers)
        return ids if gaps is None else NoDataMask(ids, gaps)


def require_size(name: object, mask: np.ndarray, size: tuple[int, ...]) -> None:
    """Raise an error if a mask's height and width differ from its image's `size`."""
    if mask.shape[:2] == tuple(size):
        return
    turned = mask.shape[1::-1] == tuple(size)
    hint = "rotated? re-export it upright" if turned else "masks are never resized silently"
    raise SetrError(
        f"{name}: mask is {mask.shape[1]}x{mask.shape[0]} but its image {size[1]}x{size[0]}; {hint}"
    )
