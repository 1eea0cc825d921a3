"""What a model reads of a file: RGB, the bands it was trained on, or others in their place."""

from __future__ import annotations

import os

from setr.bands import Bands, Range
from setr.errors import SetrError, UsageError
from setr.model_info import ModelInfo
from setr.prediction.rasters import Raster, fits_channels


class ModelBands:
    """How files become the channels of a model.

    Args:
        info: of the model; without bands of its own, one of other than three channels reads the
            first ones of a file.
        bands: numbers from 1, in place of its own; of a model for RGB those of GeoTIFF files alone.
        value_range: the values that become 0 and 255, likewise.

    Attributes:
        of_files: what is read of every file; None for RGB.

    Raises:
        SetrError: another number of bands than the model has channels.
    """

    def __init__(
        self, info: ModelInfo, bands: tuple[int, ...] = (), value_range: Range | None = None
    ) -> None:
        self.channels = len(info.mean)
        own = None if self.channels == 3 else Bands(tuple(range(1, self.channels + 1)))
        self.of_files: Bands | None = info.bands or own
        self.of_files = self.chosen(bands, value_range)
        self._of_rasters = bands, value_range

    def chosen(self, bands: tuple[int, ...], value_range: Range | None) -> Bands | None:
        """What is read of a file where these are given; None for RGB.

        Raises:
            SetrError: another number of bands than the model has channels.
        """
        if bands and not fits_channels(bands, self.channels):
            number = "one or three" if self.channels == 3 else self.channels
            raise UsageError(
                f"bands {','.join(map(str, bands))}: the model takes {self.channels} channels; "
                f"give {number} numbers"
            )
        own = self.of_files or Bands((1, 2, 3))
        numbers = bands * (self.channels // len(bands)) if bands else own.numbers
        found = Bands(numbers, (value_range,) if value_range else own.ranges)
        return None if self.of_files is None else found

    def open_raster(
        self, path: str | os.PathLike, bands: tuple[int, ...] = (), value_range: Range | None = None
    ) -> Raster:
        """A GeoTIFF by these bands and this range, or by the model's own."""
        own = self.chosen(bands, value_range)
        if own is None:
            first, second = self._of_rasters
            return Raster(path, bands=bands or first, value_range=value_range or second)
        return Raster(path, bands=own.numbers, value_range=own.ranges, channels=len(own.numbers))

    def require_rgb(self, what: str) -> None:
        """Refuse RGB images for a model of other bands.

        Args:
            what: the RGB source and its verb; begins the message.

        Raises:
            SetrError: the model reads other bands.
        """
        if self.of_files is not None:
            raise SetrError(f"{what} red, green and blue, and the model takes {self.of_files}")
