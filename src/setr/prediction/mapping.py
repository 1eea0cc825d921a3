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
from typing import Any

import numpy as np
import torch

from setr.inference import mask_blocks, normalize
from setr.labels import IGNORE
from setr.prediction.encoding import json_file
from setr.prediction.ground import ClassAreas
from setr.prediction.kinds import KINDS
from setr.prediction.rasters import RASTER_KINDS, Raster, RasterWriter
from setr.prediction.shares import share_table, unlabel
from setr.predictor import Predictor
from setr.reading.files import printable
from setr.writing import write_bytes

BLOCK_KINDS = {**RASTER_KINDS, "share": KINDS["share"]}
"""Kinds of output that need no whole raster in memory, with the ending of the file name."""
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
    predictor: Predictor, path: str | os.PathLike, out: dict[str, Path], *, strip: int = STRIP
) -> dict[str, Any]:
    """Write label and confidence rasters with the georeference of the input.

    Args:
        path: a GeoTIFF.
        out: files by kind, of `BLOCK_KINDS`: `mask` holds ids with the classes' colours, 255 where
            the input has no data or the class is less probable than the predictor's
            `min_confidence`; `confidence` 1 to 255, 0 without data; `share` what is returned.
        strip: columns computed at a time; less takes less memory and more time.

    Returns:
        As `Result.share`, of the whole raster; `mean_confidence` only with one of the kinds that
        have it.

    Raises:
        SetrError: as `Raster`, or a file that cannot be written; then none appears.
    """
    labels, least = predictor.info.labels, predictor.min_confidence
    counts, unsure, empty, total = np.zeros(256, np.int64), 0, 0, 0.0
    is_sure_known = bool(out.keys() & {"confidence", "share"})
    with predictor.reads.open_raster(path) as raster:
        H, W = raster.shape
        areas = ClassAreas(raster.geo, len(labels.classes))
        writers = {
            kind: RasterWriter(file, (H, W), raster.geo, kind, labels if kind == "mask" else None)
            for kind, file in out.items()
            if kind in RASTER_KINDS
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
                    with_confidence=is_sure_known or least > 0,
                ):
                    mask = ids[0].cpu().numpy()
                    below = row + len(mask)
                    is_empty = ~raster.has_data((row, below), columns)
                    mask[is_empty] = IGNORE
                    empty += int(np.count_nonzero(is_empty))
                    if sure is not None:
                        confidence = sure[0].float().cpu().numpy()
                        confidence[is_empty] = 0
                        total += float(confidence.sum(dtype=np.float64))
                    if least > 0:
                        unsure += unlabel(mask, confidence, least)
                    counts += np.bincount(mask.ravel(), minlength=256)
                    areas.add(mask, row, left)
                    if "mask" in writers:
                        writers["mask"].write(mask, row, left)
                    if "confidence" in writers:
                        grey = np.rint(confidence * 255).astype(np.uint8)
                        writers["confidence"].write(grey, row, left)
                    row = below
    table = share_table(
        printable(raster.name),
        (H, W),
        total / max(1, H * W - empty) if is_sure_known else None,
        counts,
        labels.classes,
        unsure=unsure,
        min_confidence=least,
        areas=areas.by_class(labels.classes),
    )
    if "share" in out:
        write_bytes(out["share"], json_file(table))
    return table
