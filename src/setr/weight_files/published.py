"""What published checkpoints of whole models do not record: classes, test and normalisation.

Sources: rstrudel/segmenter (segm/config.yml, segm/model/utils.py), tue-mps/eomt
(training/lightning_module.py), isl-org/DPT (run_segmentation.py), transformers (DPTConfig,
DPTImageProcessor) and mmsegmentation 1.2.2 (configs/segmenter, dpt, vit, beit and mae).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from setr.labels import Labels, known_labels, known_name
from setr.model_info import ModelInfo
from setr.protocols import Protocol, preset
from setr.weight_files.naming import LIGHTLY_LINEAR, SMP, Translation, recorded
from setr.weight_files.recorded_test import recorded_normalisation, recorded_protocol
from setr.weight_files.weight_settings import usual_normalisations

_DATASETS = {150: "ade20k", 19: "cityscapes"}
"""Data sets by number of classes; the authors' third one is Pascal Context with 60 classes."""
_SHORT_SIDES = {"cityscapes": 1024, "pascal_context": 520}
_MMSEG_OVERLAP = 32
_SIDE = 480
"""Side of the images that the authors' models were trained and tested on, in pixels."""
_MMSEG_SIDE = 512
_MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, for pixels 0 to 1."""
_IMAGENET: _MeanStd = ModelInfo.mean, ModelInfo.std
_HALF: _MeanStd = (0.5,) * 3, (0.5,) * 3


class Settings(NamedTuple):
    """Settings of a model.

    Attributes:
        crop: (height, width) of the training crops in pixels; None if unknown.
        protocol: single-scale test protocol.
        mean: of each channel, for pixels 0 to 1.
        std: standard deviation of each channel.
    """

    crop: tuple[int, int] | None
    protocol: Protocol
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published_labels(
    found: Translation, meta: Mapping[str, Any], decoder: str, num_classes: int
) -> Labels | None:
    """The classes of a checkpoint that names none, by their number; None if unknown."""
    if any(key in meta for key in ("classes", "CLASSES", "dataset_meta")):
        return None
    name = _DATASETS.get(num_classes)
    if found.dialect not in ("segmenter", "eomt"):
        only_ade20k = decoder == "dpt" or found.dialect == "beit-transformers"
        name = name if only_ade20k and name == "ade20k" else None
    return known_labels(name) if name else None


def published_settings(
    found: Translation, meta: Mapping[str, Any], arguments: Mapping[str, Any], labels: Labels
) -> Settings:
    """The settings of a whole model.

    Those of its code base's published models, or its own if a file of mmsegmentation records them.

    Args:
        meta: values stored beside its tensors.
        arguments: keyword arguments of `SETR` that were read from it.
    """
    usual = _usual_settings(found, meta, arguments, labels)
    if found.dialect != "mmseg":
        return usual
    mean, std = recorded_normalisation(meta) or (usual.mean, usual.std)
    return Settings(usual.crop, recorded_protocol(meta, usual.protocol), mean, std)


def _usual_settings(
    found: Translation, meta: Mapping[str, Any], arguments: Mapping[str, Any], labels: Labels
) -> Settings:
    """As `published_settings`, as the code base of a checkpoint publishes its models."""
    decoder, port = arguments["decoder"], found.dialect == "mmseg"
    if found.dialect == SMP:
        return _smp_settings(meta, arguments)
    if decoder == "dpt":
        return _dpt_settings(found, meta)
    size = arguments["img_size"]
    crop = (size, size) if isinstance(size, int) else tuple(size)
    if decoder in ("segmenter", "linear") and found.dialect != LIGHTLY_LINEAR:
        normalisation = _IMAGENET if "encoder.vit.dist_token" in found.tensors else _HALF  # of DeiT
        return Settings(crop, segmenter_test(crop, labels, port=port), *normalisation)
    if decoder in ("eomt", "linear"):
        # the authors' windows are spread evenly, here the last one is moved to the border: both are
        # the same for images less than two windows wide, and for Cityscapes
        window = (meta["side"], meta["side"]) if meta.get("side") else crop
        protocol = Protocol(window=window, stride=window, short_side=min(window), fill_window=True)
        return Settings(crop, protocol, *_stored(meta, _IMAGENET))
    side = min(crop)
    if (arguments.get("neck_args") or {}).get("feature2pyramid"):  # windows
        stride = crop[0] * 2 // 3, crop[1] * 2 // 3
        protocol = Protocol(window=crop, stride=stride, short_side=side, long_side=4 * side)
        if found.dialect == "beit-transformers":
            return Settings(crop, protocol, *_stored(meta, _HALF))
    elif decoder == "upernet":  # whole images, their short side that of the crop
        protocol = Protocol(short_side=side, long_side=4 * side)
    else:
        protocol = preset("mmseg-ss" if port else "paper-ss", labels=labels, grid=crop)
    return Settings(crop, protocol, *_IMAGENET)


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


def _dpt_settings(found: Translation, meta: Mapping[str, Any]) -> Settings:
    """Settings of a published DPT, as far as recorded, else those of its code base.

    All of them test whole images. transformers squashes images to a square unless its
    `preprocessor_config.json` has `keep_aspect_ratio`; here, as in the authors' code, images keep
    their aspect ratio, and the short side is resized to the side of that square.
    """
    if found.dialect == "mmseg":
        crop = recorded(meta, "crop_size") or (_MMSEG_SIDE, _MMSEG_SIDE)
        side = min(crop)
        protocol = Protocol(short_side=side, long_side=4 * side)
        return Settings((crop[0], crop[1]), protocol, *_IMAGENET)
    side = meta.get("side") or _SIDE
    return Settings((side, side), Protocol(short_side=side), *_stored(meta, _HALF))


def _smp_settings(meta: Mapping[str, Any], arguments: Mapping[str, Any]) -> Settings:
    """Settings of a DPT of segmentation_models.pytorch, which stores none of them.

    Mean and standard deviation are those of timm's weights for its encoder, unless its transforms
    are beside it. A model for images of one size gets images with the short side of that size, one
    for any size gets them as they are.
    """
    usual = usual_normalisations(arguments["encoder"])
    normalisation = _stored(meta, usual[0] if usual else _IMAGENET)
    if meta.get("is_dynamic"):
        return Settings(None, Protocol(), *normalisation)
    size = arguments["img_size"]
    crop = (size, size) if isinstance(size, int) else (size[0], size[1])
    return Settings(crop, Protocol(short_side=min(crop)), *normalisation)


def _stored(meta: Mapping[str, Any], usual: _MeanStd) -> _MeanStd:
    """Mean and standard deviation stored beside the tensors, else the usual ones."""
    return tuple(meta.get("mean") or usual[0]), tuple(meta.get("std") or usual[1])
