"""Evaluates a model on a split of a data set under a protocol.

Memory does not depend on the number of images, of which only integer counts are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setr import distributed
from setr.arguments.choices import Absent, Precision
from setr.bands import as_rgb
from setr.data.dataset import Dataset
from setr.data.loader import whole_images
from setr.datasets import open_dataset
from setr.distributed import rank, world
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.exporting.runtime import SUFFIXES, ExportedModel, open_exported
from setr.hub import from_pretrained
from setr.inference import GPU_PIXELS, NormalizedImages, predict_mask
from setr.kernels.recorded import recorded
from setr.layers.precision import autocast_dtype
from setr.model import SETR
from setr.model_info import ModelInfo, require_own
from setr.processes.faults import is_out_of_memory
from setr.processes.interrupt import Stopped
from setr.processes.progress import Progress
from setr.protocols import Protocol, preset
from setr.scores.scorecard import Scorecard

MAX_GROUP = {"cpu": 1, "cuda": 24}
"""Maximum number of consecutive images of equal size that are predicted together."""
MAX_GROUP_SCORES = 1 << 26
"""Maximum of images x pixels x classes in such a group; larger images are predicted one by one."""


class ScoredImage(NamedTuple):
    """An image of the split and its prediction.

    Attributes:
        number: index of the image in the split.
        name: path of the image below the data set's folder.
        image: uint8 RGB (H, W, 3), made from the first bands if the data set has others.
        truth: training ids (H, W) uint8; `IGNORE` is not counted.
        prediction: ids (H, W) uint8.
        confidence: probability of the predicted class (H, W) float32; None if not `detailed`.
        figures: `miou` and `pixel_accuracy` of this image.
    """

    number: int
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray | None
    figures: dict[str, float | None]


def evaluate(
    model: Any,
    data: str | os.PathLike | Dataset,
    *,
    protocol: str | Protocol | None = None,
    split: str = "val",
    info: ModelInfo | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a model, for example `evaluate("runs/x", "data/camvid", protocol="paper-ms")`.

    Args:
        model: a model directory, a file of `setr export`, a `Predictor`, or a `SETR` together with
            `info`.
        data: a folder, a YAML file, `scenes`, or an opened split.
        protocol: a name in `setr.protocols.PRESETS`, a `Protocol`, or None for the model's own.
        split: the split of `data` to use.
        info: normalisation, classes and protocol, if `model` is a `SETR`.
        options: keyword arguments of `evaluate_split`, such as `precision`, `workers`, `detailed`,
            `absent` and `count`; the precision of a `Predictor` is its own by default.

    Returns:
        Metrics by name, 0 to 1: `miou`, `iou` (by class), `pixel_accuracy` and others listed in
        docs/evaluation.md; `failed` has an error for each image that could not be read.

    Raises:
        SetrError: model or data set cannot be opened or do not match, or an unknown protocol.
    """
    if isinstance(model, str | os.PathLike) and Path(model).suffix in SUFFIXES:
        model, info = open_exported(Path(model))
    elif isinstance(model, str | os.PathLike):
        model, info = from_pretrained(os.fspath(model))
        model.to(distributed.device())
    elif hasattr(model, "info"):
        options.setdefault("precision", model.precision)
        model, info = model.model, model.info
    if info is None:
        raise SetrError("a SETR model: also give its ModelInfo as info=, or give a model directory")
    if not isinstance(data, str | os.PathLike | Dataset):
        raise SetrError(
            f"data {type(data).__name__}: give a path, or one split of setr.wrap_dataset or "
            "setr.open_dataset",
            code=USAGE,
        )
    dataset = (
        data
        if isinstance(data, Dataset)
        else open_dataset(str(data), split, info.labels, info.bands)
    )
    info = dataclasses.replace(info, protocol=resolve_protocol(protocol, model, info))
    return evaluate_split(model, info, dataset, **options)


def resolve_protocol(
    protocol: str | Protocol | None, model: SETR | ExportedModel, info: ModelInfo
) -> Protocol:
    """The protocol of this name for a model; None stands for the model's own."""
    if not isinstance(protocol, str):
        return protocol or info.protocol
    return preset(protocol, own=info.protocol, labels=info.labels, grid=grid_size(model))


def grid_size(model: SETR | ExportedModel) -> tuple[int, int] | None:
    """(height, width) in pixels of the model's position embedding; None without one."""
    if isinstance(model, ExportedModel):
        return model.grid
    vit = getattr(getattr(model, "encoder", None), "vit", None)
    patches = getattr(vit, "patch_embed", None)
    if patches is None:
        return None
    height, width = patches.img_size
    return height, width


def evaluate_split(
    model: SETR | ExportedModel,
    info: ModelInfo,
    dataset: Dataset,
    *,
    precision: Precision = "auto",
    workers: int = 1,
    detailed: bool = True,
    absent: Absent = "skip",
    count: int | None = None,
    on_image: Callable[[ScoredImage], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Evaluate a model on a split under `info.protocol`.

    If `torch.distributed` is initialised, every process evaluates its share of the images and
    returns the metrics of all. They are bit-identical to those of one process, except on GPUs,
    where images of equal size are predicted in groups and near-ties may be decided differently.

    Args:
        model: the model, on any device; its training mode is restored afterwards.
        info: classes, normalisation and protocol.
        dataset: a split with the classes of the model.
        precision: precision of the forward pass.
        workers: processes that load images.
        detailed: also compute boundary scores, recall by size, calibration and intervals, which is
            slower.
        absent: what to do with classes in neither truth nor prediction: `skip` leaves them out of
            the means, `zero` counts them as 0.
        count: number of images to use, evenly spaced over the split; all by default.
        on_image: called with every image of this process.
        stopped: called before every image, or group of images on a GPU; once it returns true in any
            process, all of them stop.

    Returns:
        `Scorecard.summary`, `protocol` and `seconds`. Images that cannot be read are only listed in
        `failed`.

    Raises:
        SetrError: no images, none readable, other classes, NaN scores, or a count below 1.
        Stopped: in all processes, if `stopped` returned true in one.
    """
    require_fit(model, info, dataset)
    if count is not None and count < 1:
        raise SetrError(f"count {count}: give at least one image", code=USAGE)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = autocast_dtype(precision, device)
    card = Scorecard(dataset.labels.classes, device, detailed=detailed, absent=absent)
    began = time.monotonic()
    chosen = range(len(dataset)) if count is None else spread(len(dataset), count)
    indices = chosen[rank() :: world()]
    samples = zip(indices, whole_images(dataset, workers, indices), strict=True)
    group_size = functools.partial(_group_size, device, info.protocol, model.num_classes)
    done = 0
    with testing(model, dtype), Progress("eval", len(indices)) as progress:
        network = recorded(model)
        for group in _grouped_by_size(samples, group_size):
            if stopped():
                break
            if isinstance(group, SetrError):
                card.fail(str(group))
            else:
                for scored in _score_images(network, info, card, dataset, group):
                    if on_image:
                        on_image(scored)
            size = 1 if isinstance(group, SetrError) else len(group)
            done += size
            progress.update(done, images=size)
    if distributed.any_of(stopped()):  # in all processes, since the reduction waits for all
        raise Stopped
    card.reduce()
    figures = card.summary()
    if not figures["images"]:
        problem = SetrError(
            f"none of the {len(dataset)} images of split '{dataset.split}' of {dataset.name} could "
            f"be read; the first: {figures['failed'][0]}",
            code=DATA_CHECK_FAILED,
        )
        raise distributed.together(problem)
    return {
        **figures,
        "protocol": info.protocol.describe(),
        "seconds": time.monotonic() - began,
    }


_Sample = tuple[int, Tensor, Tensor]
"""Index in the split, image (1, H, W, C) and mask (1, H, W)."""


def _group_size(
    device: torch.device, protocol: Protocol, num_classes: int, height: int, width: int
) -> int:
    """Number of images of this size that are predicted together."""
    limit = MAX_GROUP.get(device.type, MAX_GROUP["cuda"])
    if limit == 1:
        return 1
    try:
        view = protocol.view_size(height, width, max(protocol.scales))
    except SetrError:  # raised again, with the image's name, when it is predicted
        return 1
    sides = (min(pair) for pair in zip(protocol.window or view, view, strict=True))
    by_scores = MAX_GROUP_SCORES // (num_classes * height * width)
    return max(1, min(limit, GPU_PIXELS // math.prod(sides), by_scores))


def _grouped_by_size(
    samples: Iterable[tuple[int, tuple[Tensor, Tensor] | SetrError]],
    group_size: Callable[[int, int], int],
) -> Iterator[list[_Sample] | SetrError]:
    """Groups of consecutive images of equal size, at most `group_size(height, width)` in each.

    Errors of images that could not be read are yielded in between.
    """
    group: list[_Sample] = []
    for index, sample in samples:
        if isinstance(sample, SetrError):
            if group:
                yield group
                group = []
            yield sample
            continue
        image = sample[0]
        if group and group[0][1].shape != image.shape:
            yield group
            group = []
        group.append((index, *sample))
        if len(group) >= group_size(*image.shape[1:3]):
            yield group
            group = []
    if group:
        yield group


def _score_images(
    model: Any, info: ModelInfo, card: Scorecard, dataset: Dataset, group: list[_Sample]
) -> Iterator[ScoredImage]:
    """Predict a group of images together, or in halves if memory runs out; score each."""
    device = card.confusion.counts.device
    names = [dataset.image_name(index) for index, _, _ in group]
    images = torch.cat([image for _, image, _ in group])
    masks = torch.cat([mask for _, _, mask in group])
    x = NormalizedImages(images.to(device), info.mean, info.std)
    size = (masks.shape[-2], masks.shape[-1])
    predictions = None
    try:
        predictions, confidences = predict_mask(
            model, x, info.protocol, size=size, with_confidence=card.detailed
        )
    except SetrError as error:
        which = names[0] if len(names) == 1 else f"one of {names[0]} to {names[-1]}"
        raise SetrError(f"{which}: {error}") from None
    except RuntimeError as error:
        if len(group) == 1 or not is_out_of_memory(error):
            raise
    if predictions is None:  # not in `except`, where the error keeps tensors alive
        middle = len(group) // 2
        for part in (group[:middle], group[middle:]):
            yield from _score_images(model, info, card, dataset, part)
        return
    truths = masks.to(device)
    for i, (index, image, mask) in enumerate(group):
        confidence = None if confidences is None else confidences[i]
        figures = card.update(index, predictions[i], truths[i], confidence)
        yield ScoredImage(
            index,
            names[i],
            as_rgb(image[0].numpy()),
            mask[0].numpy(),
            predictions[i].cpu().numpy(),
            None if confidence is None else confidence.cpu().numpy(),
            figures,
        )


@contextlib.contextmanager
def testing(model: SETR | ExportedModel, dtype: torch.dtype | None) -> Iterator[None]:
    """Context with the model in eval mode, autocast to `dtype`, and no gradients."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(was_training)


def spread(length: int, count: int) -> list[int]:
    """`count` evenly spaced indices from 0 to length - 1, or all if there are fewer; one is 0."""
    if count >= length:
        return list(range(length))
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]


def require_fit(model: SETR | ExportedModel, info: ModelInfo, dataset: Dataset) -> None:
    """Raise an error if a split has no images, or other classes or channels than the model."""
    if not len(dataset):
        raise SetrError(
            f"split '{dataset.split}' of {dataset.name} has no images", code=DATA_CHECK_FAILED
        )
    require_own(model, info)
    if dataset.channels != len(info.mean):
        raise SetrError(
            f"the model takes {len(info.mean)} channels but the images of {dataset.name} have "
            f"{dataset.channels}; name as many under 'bands' in its data.yaml",
            code=DATA_CHECK_FAILED,
        )
    ours, theirs = info.labels.classes, dataset.labels.classes
    if len(theirs) != model.num_classes:
        raise SetrError(
            f"the model has {model.num_classes} classes but {dataset.name} has {len(theirs)}; they "
            "must be equal",
            code=DATA_CHECK_FAILED,
        )
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.casefold().strip() != b.casefold().strip():
            raise SetrError(
                f"class {number} is '{a}' in the model but '{b}' in {dataset.name}; the classes "
                "must be the same, in the same order (edit 'classes' and 'label_map' of the data; "
                "`setr convert CHECKPOINT --labels NAME` names those of a checkpoint)",
                code=DATA_CHECK_FAILED,
            )


def require_labelled(model: SETR | ExportedModel, info: ModelInfo, dataset: Dataset) -> None:
    """As `require_fit`; also raise an error if neither first, middle nor last pair can be read.

    For commands that need the split only minutes later.
    """
    require_fit(model, info, dataset)
    problems = []
    for index in spread(len(dataset), 3):
        try:
            dataset.load(index)
        except SetrError as error:
            problems.append(error)
        else:
            return
    raise SetrError(str(problems[0]), code=DATA_CHECK_FAILED)
