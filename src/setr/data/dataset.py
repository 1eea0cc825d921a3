"""One split of a data set, whatever holds it: files, and what loops over it can rely on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from setr.bands import BandImage, Bands, open_pixels
from setr.data.pairs import Pair, Pairs
from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.images import Rows, Source
from setr.labels import IGNORE, Labels
from setr.reading.gdal import Gaps, without_data
from setr.reading.masks import read_mask

Pixels = np.ndarray | Rows | BandImage
"""An image (H, W, C): uint8 pixels, or a file of which they are decoded when they are indexed."""


class GappyMask:
    """Training ids (H, W) with an image that has gaps: `mask[a:b, c:d]` ignores those there.

    They are read when pixels are asked for, and of a crop's window alone.
    """

    def __init__(self, ids: np.ndarray, gaps: Gaps) -> None:
        self._ids, self._gaps = ids, gaps
        self.shape = ids.shape

    def __getitem__(self, place: slice | tuple[slice, slice]) -> np.ndarray:
        return np.where(self._gaps[place], np.uint8(IGNORE), self._ids[place])


Mask = np.ndarray | GappyMask
"""Training ids uint8 (H, W), or those that are made when they are indexed."""


class Sample(NamedTuple):
    """One decoded example: image uint8 (H, W, C), mask uint8 training ids (H, W).

    C are red, green and blue, or the data set's bands.
    """

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """One split: file pairs and the classes their ids mean.

    Attributes:
        name: of the data set.
        split: of it.
        labels: classes and the map of ids.
        pairs: the files.
        notes: what was odd about the files, but no error.
        bands: what is read of an image; None for RGB.
    """

    name: str
    split: str
    labels: Labels
    pairs: Sequence[Pair]
    notes: tuple[str, ...] = ()
    bands: Bands | None = field(default=None, kw_only=True)

    decoded: ClassVar[bool] = False
    """Whether samples come as pixels, so that there are no files to look at."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """One decoded pair, as `load`; so loops, `Subset` and `ConcatDataset` of torch work."""
        return self.load(range(len(self))[operator.index(index)])

    @property
    def version(self) -> str | None:
        """Changes with the content; None where the pairs are files, whose times tell."""
        return None

    @property
    def channels(self) -> int:
        """C of the images."""
        return 3 if self.bands is None else len(self.bands.numbers)

    def image_name(self, index: int) -> str:
        """What reports call an image: its path below the data set's folder, which no other has."""
        if isinstance(self.pairs, Pairs):
            return self.pairs.image_name(index)
        return self.pairs[index].image.name

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """An order of the samples for one epoch."""
        return rng.permutation(len(self))

    def sources(self, index: int) -> tuple[Source, Source | None]:
        """What image and mask are decoded from: paths, or the bytes of files."""
        pair = self.pairs[index]
        return pair.image, pair.mask

    def load(self, index: int) -> Sample:
        """Decode one pair.

        Raises:
            SetrError: unreadable file, sizes that differ, ids outside the classes; names the file.
        """
        rows, mask = self.open(index)
        return Sample(rows[:], mask[:])

    def pixels(self, index: int) -> Pixels:
        """An image, of which only what is asked for is decoded.

        Raises:
            SetrError: as `load`, here or when rows are asked for.
        """
        return open_pixels(self.sources(index)[0], self.bands)

    def open(self, index: int) -> tuple[Pixels, Mask]:
        """One pair: an image as `pixels` gives it, and its mask in training ids.

        Raises:
            SetrError: as `load`, here or when rows of either are asked for.
        """
        rows, raw = self.open_raw(index)
        image = None if isinstance(rows, np.ndarray) else rows.source
        return rows, self.to_train_ids(index, raw, image)

    def open_raw(self, index: int) -> tuple[Pixels, np.ndarray]:
        """The same with the mask as it is stored: ids (H, W) or colours (H, W, 3)."""
        image_source, mask_source = self.sources(index)
        rows = open_pixels(image_source, self.bands)
        return rows, self.raw_mask(index, mask_source, rows.shape[:2])

    def raw_mask(self, index: int, source: Source | None, size: tuple[int, ...]) -> np.ndarray:
        """Ids (H, W) or colours (H, W, 3) as a mask file holds them, of its image's (H, W)."""
        pair = self.pairs[index]
        if source is None:
            raise SetrError(f"{pair.image}: has no mask", code=DATA_CHECK_FAILED)
        raw = read_mask(source, rgb=self.labels.colour_map is not None)
        require_size(pair.mask, raw, size)
        return raw

    def to_train_ids(self, index: int, raw: np.ndarray, image: Source | None) -> Mask:
        """Training ids uint8 (H, W) of a raw mask; an error names the file.

        Where the image is a GeoTIFF, pixels that it calls empty are ignored.
        """
        try:
            ids = self.labels.to_train_ids(raw)
        except SetrError as error:
            raise SetrError(f"{self.pairs[index].mask}: {error}") from None
        numbers = (1, 2, 3) if self.bands is None else self.bands.numbers
        gaps = None if image is None else without_data(image, numbers)
        return ids if gaps is None else GappyMask(ids, gaps)


def require_size(name: object, mask: np.ndarray, size: tuple[int, ...]) -> None:
    """Refuse a mask, known as `name`, of another height and width than its image's `size`."""
    if mask.shape[:2] == tuple(size):
        return
    turned = mask.shape[1::-1] == tuple(size)
    hint = "rotated? re-export it upright" if turned else "masks are never resized silently"
    raise SetrError(
        f"{name}: mask is {mask.shape[1]}x{mask.shape[0]} but its image {size[1]}x{size[0]}; {hint}"
    )
