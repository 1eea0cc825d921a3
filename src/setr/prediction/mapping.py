"""Segment a GeoTIFF of any size, in the memory of a strip of windows.

The raster is never resized, because its pixels have a size on the ground. One grid of blended
windows covers all of it; strips of columns are computed one after another, each with every window
that overlaps it, so that the labels equal those of the whole raster and no seams appear.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import EllipsisType

import numpy as np
import torch

from setr.inference import mask_blocks, normalize
from setr.labels import IGNORE
from setr.prediction.rasters import Raster, RasterWriter
from setr.prediction.shares import class_shares, unlabel
from setr.predictor import Predictor

STRIP = 4096
"""Columns per strip; windows that straddle two strips are computed for both."""


class _Pixels:
    """Normalised pieces of a raster, read when a window asks for them."""

    def __init__(self, raster: Raster, predictor: Predictor) -> None:
        self.raster, self.info = raster, predictor.info
        self.device = predictor.device
        self.shape = (1, raster.channels, *raster.shape)

    def __getitem__(self, place: tuple[EllipsisType, slice, slice]) -> torch.Tensor:
        _, rows, columns = place
        H, W = self.raster.shape
        image = self.raster.read(
            (rows.start, min(rows.stop, H)), (columns.start, min(columns.stop, W))
        )
        x = torch.from_numpy(image)[None].to(self.device)
        return normalize(x, self.info.mean, self.info.std)


def predict_raster(
    predictor: Predictor,
    path: str | os.PathLike,
    out: dict[str, Path],
    *,
    strip: int = STRIP,
) -> dict[str, float]:
    """Write label and confidence rasters with the georeference of the input.

    Args:
        predictor: the model.
        path: a GeoTIFF.
        out: files by kind, of `rasters.RASTER_KINDS`: `mask` holds ids with the classes' colours,
            255 where the input has no data or the class is less probable than the predictor's
            `min_confidence`; `confidence` 0 to 255.
        strip: columns computed at a time; less takes less memory and more time.

    Returns:
        Share of the data per class, largest first; what is missing to 1 is unlabelled.

    Raises:
        SetrError: as `Raster`, or a file that cannot be written; then none appears.
    """
    labels, least = predictor.info.labels, predictor.min_confidence
    counts, unsure = np.zeros(256, np.int64), 0
    with predictor.reads.open_raster(path) as raster:
        H, W = raster.shape
        writers = {
            kind: RasterWriter(file, (H, W), raster.geo, labels if kind == "mask" else None)
            for kind, file in out.items()
        }
        with ExitStack() as stack:
            stack.enter_context(predictor.computing())
            for writer in writers.values():
                stack.enter_context(writer)
            for left in range(0, W, strip):
                columns = left, min(left + strip, W)
                row = 0
                for ids, sure in mask_blocks(
                    predictor.passes,
                    _Pixels(raster, predictor),
                    predictor.raster_protocol,
                    columns=columns,
                    with_confidence="confidence" in out or least > 0,
                ):
                    mask = ids[0].cpu().numpy()
                    below = row + len(mask)
                    mask[~raster.has_data((row, below), columns)] = IGNORE
                    if sure is not None:
                        confidence = sure[0].float().cpu().numpy()
                    if least > 0:
                        unsure += unlabel(mask, confidence, least)
                    counts += np.bincount(mask.ravel(), minlength=256)
                    if "mask" in writers:
                        writers["mask"].write(mask, row, left)
                    if "confidence" in writers:
                        grey = np.rint(confidence * 255).astype(np.uint8)
                        writers["confidence"].write(grey, row, left)
                    row = below
    return class_shares(counts, labels.classes, unsure)
