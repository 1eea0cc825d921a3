"""Several sources of images at once, as Python code gives them: folders, patterns, lists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from setr.prediction.live import is_live
from setr.reading.files import expanded, no_images
from setr.reading.urls import is_url


def single_sources(source: Any) -> Iterator[Any]:
    """The images, videos and live sources that one source of `Predictor.predict_all` stands for.

    Args:
        source: a file, folder or glob pattern; a list, tuple or iterator, whose parts may be any of
            these; any other source stands for itself.

    Raises:
        SetrError: a folder or a pattern without images.
    """
    is_iterator = isinstance(source, Iterator) and not hasattr(source, "read")  # but no open file
    if is_iterator or isinstance(source, list | tuple):
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
