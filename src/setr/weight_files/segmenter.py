"""Settings that published Segmenter and EoMT checkpoints do not record.

They are classes, windows and normalisation. Sources: rstrudel/segmenter (segm/config.yml,
segm/model/utils.py), mmsegmentation 1.2.2 (configs/segmenter) and tue-mps/eomt
(training/lightning_module.py).
"""

from __future__ import annotations

from setr.labels import Labels, known_labels, known_name
from setr.model_info import ModelInfo
from setr.protocols import Protocol
from setr.weight_files.naming import Tensors

_DATASETS = {150: "ade20k", 19: "cityscapes"}
"""Data sets by number of classes; the authors' third one is Pascal Context with 60 classes."""
_SHORT_SIDES = {"cityscapes": 1024, "pascal_context": 520}
_MMSEG_OVERLAP = 32


def segmenter_labels(num_classes: int) -> Labels | None:
    """The classes of a checkpoint of the authors, by their number; None if unknown."""
    name = _DATASETS.get(num_classes)
    return known_labels(name) if name else None


def segmenter_test(crop: tuple[int, int], labels: Labels, *, port: bool) -> Protocol:
    """The single-scale test protocol of a model trained on crops of this (height, width) in pixels.

    mmsegmentation (`port`) only has ADE20K, with windows that overlap by 32 pixels. The authors'
    windows do not overlap on ADE20K and have a stride of two thirds elsewhere; smaller images are
    enlarged to a window.
    """
    side, dataset = min(crop), known_name(labels)
    if port:
        stride = crop[0] - _MMSEG_OVERLAP, crop[1] - _MMSEG_OVERLAP
        return Protocol(window=crop, stride=stride, short_side=side, long_side=4 * side)
    stride = crop if dataset == "ade20k" else (crop[0] * 2 // 3, crop[1] * 2 // 3)
    short = _SHORT_SIDES.get(dataset or "", side)
    return Protocol(window=crop, stride=stride, short_side=short, fill_window=True)


def segmenter_normalisation(
    tensors: Tensors, labels: Labels
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (pixels 0 to 1): ImageNet's for DeiT encoders, else 0.5."""
    if "encoder.vit.dist_token" in tensors:
        imagenet = ModelInfo(labels)
        return imagenet.mean, imagenet.std
    return (0.5,) * 3, (0.5,) * 3


def eomt_test(crop: tuple[int, int]) -> Protocol:
    """The authors' test: the short side resized to the windows', which do not overlap if they fit.

    Their windows are spread evenly; here the last one is moved to the border. Both are the same for
    images less than two windows wide, and for Cityscapes.
    """
    return Protocol(window=crop, stride=crop, short_side=min(crop), fill_window=True)
