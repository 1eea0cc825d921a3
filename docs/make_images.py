"""Draw the documents' pictures from the demo model: python docs/make_images.py [runs/demo].

demo.png: rows are drawn scene, truth, prediction; columns are scenes the model never saw.
predict.png: what comes out of one prediction.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

import setr
from setr.data import scenes
from setr.images import encode_png
from setr.pages.montage import montage, with_legend
from setr.pages.page import heat
from setr.result import Result
from setr.writing import write_bytes

COLUMNS, ZOOM, GAP, SCALE = 6, 2, 6, 3


def main() -> None:
    """Write docs/images/demo.png and predict.png."""
    predictor = setr.load(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    folder = Path(__file__).parent / "images"
    folder.mkdir(exist_ok=True)
    write_bytes(folder / "predict.png", encode_png(_outputs(predictor.predict(_photo()))))
    columns = []
    for index in range(100, 100 + COLUMNS):
        image, mask = scenes.draw("test", index)
        rows = [image, scenes.LABELS.palette[mask], predictor.predict(image).color()]
        columns.append(_stack(rows, axis=0))
    write_bytes(folder / "demo.png", encode_png(_stack(columns, axis=1)))


def _photo() -> np.ndarray:
    return scenes.draw("test", 107)[0]


def _outputs(result: Result) -> np.ndarray:
    """Image, classes, overlay; confidence, exact outlines, simplified outlines; a legend."""
    rows = [
        [
            (_large(result.image), "image"),
            (_large(result.color()), "color"),
            (_large(result.overlay()), "overlay"),
        ],
        [
            (_large(heat(result.confidence)), "confidence (yellow = certain)"),
            (_outlines(result, 0.0), "polygons, exact"),
            (_outlines(result, 2.0), "polygons, tolerance 2"),
        ],
    ]
    ids = [result.labels.classes.index(name) for name in result.shares]
    return with_legend(montage(rows, width=SCALE * scenes.SIZE), result.labels, ids)


def _large(picture: np.ndarray) -> np.ndarray:
    size = (picture.shape[1] * SCALE, picture.shape[0] * SCALE)
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)


def _outlines(result: Result, tolerance: float) -> np.ndarray:
    """The outlines of all regions over the faded image."""
    picture = _large(255 - (255 - result.image) // 3)
    for polygon in result.polygons(tolerance=tolerance, min_pixels=8):
        colour = tuple(int(c) for c in result.labels.colours[polygon.class_id])
        for ring in polygon.rings:
            cv2.polylines(picture, [ring * SCALE], True, colour, 2, cv2.LINE_AA)
    return picture


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
