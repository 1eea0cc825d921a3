"""The shape of the patch grid that one of our models was made for, which its tensors do not show.

Position embeddings of 256 patches are of 16x16 patches, or of 8x32. The `config.json` beside the
weights tells.
"""

from __future__ import annotations

import math
from pathlib import Path

from setr.reading.parsed import BROKEN, table_in


def stored_size(source: str) -> tuple[int, int] | None:
    """The image size (height, width) in pixels that a model of this toolkit was made for.

    Args:
        source: its folder, or the file of its weights.

    Returns:
        None where no file tells.
    """
    place = Path(source)
    config = (place if place.is_dir() else place.parent) / "config.json"
    try:
        stated = table_in(config)["model"]["img_size"]
        height, width = (stated, stated) if isinstance(stated, int) else map(int, stated)
        return (height, width) if min(height, width) > 0 else None
    except BROKEN:
        return None


def shape_of(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """The (rows, columns) of this product whose ratio is nearest to that of an image size."""
    shapes = [(n, count // n) for n in range(1, count + 1) if count % n == 0]
    wanted = math.log(size[0] / size[1])
    return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - wanted))
