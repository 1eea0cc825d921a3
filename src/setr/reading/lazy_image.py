"""Images of which only the rows that a crop needs are decoded."""

from __future__ import annotations

import numpy as np

from setr.images import read_image
from setr.reading.decode import can_stop_early, check_png_rows, decode_png, first_rows
from setr.reading.pillow import (
    MAX_PIXELS,
    Named,
    Source,
    file_bytes,
    opened,
    source_name,
    unreadable,
)


class LazyImage:
    """An image that is decoded on indexing: `image[a:b, c:d]` is uint8 RGB.

    PNG decoding takes most of the time of data loading and crops rarely reach the lower edge, so
    plain PNG files are only decoded down to the last row needed. Other files are decoded whole.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        SetrError: as `read_image`, here or on indexing.
    """

    def __init__(self, source: Source) -> None:
        self.name = source_name(source)
        try:
            self.source = file_bytes(source)
        except OSError as error:
            raise unreadable(self.name, error, source) from None
        with opened(self.source, MAX_PIXELS, self.name) as image:
            early = can_stop_early(image, self.source)
            self.shape: tuple[int, ...] = (image.size[1], image.size[0], 3)
        self.pixels = None if early else read_image(Named(self.source, self.name))
        if self.pixels is not None:
            self.shape = self.pixels.shape

    def __getitem__(self, window: slice | tuple[slice, slice]) -> np.ndarray:
        """The pixels of rows, or of rows and columns, without steps."""
        if self.pixels is not None:
            return self.pixels[window]
        (top, bottom), (left, right) = bounds(window, self.shape)
        data = first_rows(self.source, bottom)
        with opened(data, MAX_PIXELS, self.name) as image:
            pixels = decode_png(image, data)
            if pixels is not None:
                return pixels[top:, left:right]
            check_png_rows(image, data)
            return np.asarray(image.crop((left, top, right, bottom)))  # `crop` copies


def bounds(window: slice | tuple[slice, slice], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, stop) of the rows and of the columns of an index."""
    parts = window if isinstance(window, tuple) else (window, slice(None))
    return [part.indices(size)[:2] for part, size in zip(parts, shape, strict=False)]
