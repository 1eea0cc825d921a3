"""Images without masks: for a model to learn what its teacher sees, or to choose from."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from setr.bands import Bands, check_pixels
from setr.data.dataset import Dataset, Mask, Pixels
from setr.data.pairing import SplitFiles
from setr.data.pairs import Pairs
from setr.errors import DataError, SetrError, UsageError, joined_problems
from setr.labels import Labels
from setr.processes.quota import cpus
from setr.reading.files import no_images, walk_images

SPLIT = "distill.images"
"""Its name where splits are told apart; no other split has one with a dot in this place."""


@dataclass(frozen=True)
class UnlabelledImages(Dataset):
    """Images whose masks tell where they have data: 0, and `IGNORE` where a GeoTIFF has none."""

    def open(self, index: int) -> tuple[Pixels, Mask]:
        """One image, decoded lazily, and its mask."""
        rows = self.pixels(index)
        ids = np.zeros(rows.shape[:2], np.uint8)
        return rows, ids if isinstance(rows, np.ndarray) else self.with_gaps(ids, rows.source)


def open_unlabelled(
    folder: str | os.PathLike,
    labels: Labels,
    bands: Bands | None,
    option: str = SPLIT,
) -> Dataset:
    """The images of a folder and the folders in it.

    Args:
        folder: its path; which files in it are images, see `walk_images`.
        labels: of the training split.
        bands: of the training split.
        option: what names the folder in messages, and the split; empty for the folder alone.

    Raises:
        SetrError: no such folder, or no images in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{option} {folder}: no such folder".lstrip())
    names = walk_images(root)
    if not names:
        raise no_images(folder, option)
    pairs = Pairs([SplitFiles(root, names, None)])
    return UnlabelledImages(root.name, option, labels, pairs, bands=bands)


def require_readable(images: Dataset, progress: Callable[[int, int], None]) -> None:
    """Check header and end of every image file.

    Raises:
        SetrError: lists those that cannot be used.
    """

    def problem(index: int) -> str:
        try:
            check_pixels(images.sources(index)[0], images.bands)
        except SetrError as error:
            return str(error)
        return ""

    problems = []
    with ThreadPoolExecutor(cpus()) as pool:
        for done, found in enumerate(pool.map(problem, range(len(images))), 1):
            problems += [found] if found else []
            progress(done, len(images))
    if problems:
        listed = joined_problems(problems)
        raise DataError(
            f"{SPLIT}: {len(problems)} of {len(images)} images cannot be used: {listed}"
        )
