"""Says in one line that batch norm was given a single value per channel, which has no variance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from setr.distributed import together
from setr.errors import UsageError

_TORCHS_WORDS = "more than 1 value per channel"


@contextlib.contextmanager
def require_several_values(images: int, size: tuple[int, int]) -> Iterator[None]:
    """Context manager of a forward pass in training, the same in all processes.

    Args:
        images: of the micro-batch.
        size: (H, W) of its crops in pixels.

    Raises:
        SetrError: maps of one pixel, and a micro-batch of one image.
    """
    try:
        yield
    except ValueError as error:
        if _TORCHS_WORDS not in str(error):
            raise
        raise together(
            UsageError(
                f"data.crop_size {size[0]} {size[1]}: with {images} image at a time the heads' "
                "batch norm sees a single value per channel, which has no variance; give larger "
                "crops, or more images (train.batch_size, train.accumulate)"
            )
        ) from error
