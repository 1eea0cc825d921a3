"""The bytes of the files that a result is saved as."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from setr.images import encode_picture
from setr.labels import Labels
from setr.prediction.kinds import KINDS, LOSSLESS, OPTIONS, PICTURE_FORMATS, unknown_kind

QUALITY = 95
"""Quality of JPEG and WebP files, 1 to 100."""


def require_options(kind: str, options: dict[str, Any]) -> None:
    """Refuse an unknown kind, and options that a kind does not have.

    Raises:
        SetrError: unknown kind.
        TypeError: an option that it does not have.
    """
    if kind not in KINDS:
        raise unknown_kind(kind)
    if other := [name for name in options if name not in OPTIONS.get(kind, ())]:
        raise TypeError(f"save kind '{kind}' has no option '{other[0]}'")


def picture_file(array: np.ndarray, suffix: str, palette: np.ndarray | None) -> bytes:
    """Pixels in the format of a suffix in `PICTURE_FORMATS`; arguments as `encode_picture`."""
    quality = {} if suffix in LOSSLESS else {"quality": QUALITY}
    return encode_picture(array, PICTURE_FORMATS[suffix], palette=palette, **quality)


def scores_file(scores: np.ndarray, labels: Labels) -> bytes:
    """Probabilities (K, H, W) as float16, and the class names, as .npz."""
    buffer = io.BytesIO()
    names = np.array(labels.classes)
    np.savez_compressed(buffer, scores=scores.astype(np.float16), classes=names)
    return buffer.getvalue()


def json_file(value: Any) -> bytes:
    """A value as one line of JSON."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
