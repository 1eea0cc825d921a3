"""Several sources of images at once, as Python code gives them: folders, patterns, lists."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import Any

from setr.prediction.live import is_live
from setr.reading.files import expanded, no_images
from setr.reading.urls import is_url


def is_sequence(source: Any) -> bool:
    """Whether this is a list or the like, not text or bytes."""
    one = str | bytes | bytearray | memoryview
    return isinstance(source, Sequence) and not isinstance(source, one)


def is_pattern(source: str) -> bool:
    """Whether a name that is no file has wildcards."""
    return glob.has_magic(source) and not is_url(source) and not os.path.lexists(source)


def single_sources(source: Any) -> Iterator[Any]:
    """The images, videos and live sources that one source of `Predictor.predict_all` stands for.

    Args:
        source: a file, folder or glob pattern; a list or another sequence (a column of a Hugging
            Face data set) or iterator, whose parts may be any of these; any other source stands
            for itself.

    Raises:
        SetrError: a folder or a pattern without images.
    """
    is_iterator = isinstance(source, Iterator) and not hasattr(source, "read")  # but no open file
    if is_iterator or is_sequence(source):
        for part in source:
            yield from single_sources(part)
        return
    if not isinstance(source, str | os.PathLike) or is_url(os.fspath(source)) or is_live(source):
        yield source
        return
    files = expanded(os.fspath(source))
    if not files:
        raise no_images(os.fspath(source))
    for path, _ in files:
        yield path
