"""Draw the README's picture from the demo model: python docs/make_images.py [runs/demo].

Rows: drawn scene, truth, prediction; columns: scenes the model never saw.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

import setr
from setr import scenes
from setr.images import encode_png, write_bytes

COLUMNS, ZOOM, GAP = 6, 2, 6


def main() -> None:
    """Write docs/images/demo.png."""
    predictor = setr.load(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    columns = []
    for index in range(100, 100 + COLUMNS):
        image, mask = scenes.draw("test", index)
        rows = [image, scenes.LABELS.palette[mask], predictor.predict(image).color()]
        columns.append(_stack(rows, axis=0))
    path = Path(__file__).parent / "images" / "demo.png"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, encode_png(_stack(columns, axis=1)))


def _stack(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Enlarge scenes and join pictures with a white gap."""
    size = (scenes.SIZE * ZOOM, scenes.SIZE * ZOOM)
    if axis == 0:
        parts = [cv2.resize(p, size, interpolation=cv2.INTER_NEAREST) for p in parts]
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    joined = [piece for part in parts for piece in (gap, part)][1:]
    return np.ascontiguousarray(np.concatenate(joined, axis=axis))


if __name__ == "__main__":
    main()
