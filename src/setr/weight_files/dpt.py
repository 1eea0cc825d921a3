"""Architecture and settings of published DPT checkpoints.

Sources: isl-org/DPT (run_segmentation.py), transformers (DPTConfig, DPTImageProcessor) and
mmsegmentation 1.2.2 (configs/dpt).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from setr.labels import Labels, known_labels
from setr.model_info import ModelInfo
from setr.protocols import Protocol
from setr.weight_files.architecture import recorded
from setr.weight_files.naming import Translation

_NUM_ADE20K = 150
_SIDE = 480
"""Side of the images that the authors' models were trained and tested on, in pixels."""
_MMSEG_SIDE = 512


class DPTSettings(NamedTuple):
    """What a checkpoint's tensors do not show.

    Attributes:
        labels: classes, if the file names none but has as many as ADE20K; else None.
        crop: (height, width) of the training crops in pixels.
        protocol: single-scale test protocol.
        mean: of each channel, for pixels 0 to 1.
        std: standard deviation of each channel.
    """

    labels: Labels | None
    crop: tuple[int, int]
    protocol: Protocol
    mean: tuple[float, ...]
    std: tuple[float, ...]


def dpt_settings(found: Translation, meta: Mapping[str, Any], num_classes: int) -> DPTSettings:
    """Settings of a published DPT, as far as recorded, else those of its code base.

    All of them test whole images. transformers squashes images to a square unless its
    `preprocessor_config.json` has `keep_aspect_ratio`; here, as in the authors' code, images keep
    their aspect ratio, and the short side is resized to the side of that square.
    """
    unnamed = not any(key in meta for key in ("classes", "CLASSES", "dataset_meta"))
    labels = known_labels("ade20k") if unnamed and num_classes == _NUM_ADE20K else None
    if found.dialect == "mmseg":
        crop = recorded(meta, "crop_size") or (_MMSEG_SIDE, _MMSEG_SIDE)
        side = min(crop)
        imagenet = ModelInfo(Labels(("any",)))
        protocol = Protocol(short_side=side, long_side=4 * side)
        return DPTSettings(labels, (crop[0], crop[1]), protocol, imagenet.mean, imagenet.std)
    side = meta.get("side") or _SIDE
    mean, std = (tuple(meta.get(key) or (0.5,) * 3) for key in ("mean", "std"))
    return DPTSettings(labels, (side, side), Protocol(short_side=side), mean, std)
