"""Testing a model on a split of a data set under a protocol, streaming.

Memory does not depend on the number of images: integer counts are all that is kept of one.
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

TOGETHER = {"cpu": 1, "cuda": 24}
"""Images of one size that follow each other are tested at once, at most so many."""
TOGETHER_SCORES = 1 << 26
"""Pixels times classes of these images; where one has more, it is tested alone. So it is where a
pass over one window of each would have more than `GPU_PIXELS`."""


class ScoredImage(NamedTuple):
    """One image and how it was predicted.

    Attributes:
        number: of the image in the split.
        name: its path below the data set's folder.
        image: uint8 RGB (H, W, 3); of other bands the first three, or the first of fewer.
        truth: training ids (H, W) uint8, `IGNORE` is not counted.
        prediction: ids (H, W) uint8.
        confidence: probability of the predicted class (H, W) float32; None if not `detailed`.
        figures: `miou` and `pixel_accuracy` of this image alone.
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
    """Test a model, for example `evaluate("runs/x", "data/camvid", protocol="paper-ms")`.

    Args:
        model: a model directory, a file of `setr export`, a `Predictor`, or a `SETR` together with
            `info`.
        data: a folder, a YAML file, `scenes`, or an opened split.
        protocol: a name of `setr.protocols.PRESETS`, a `Protocol`, or None for the model's own.
        split: which split of `data`.
        info: normalisation, classes and protocol of a bare `SETR`.
        options: further keywords of `evaluate_split`: `precision`, `workers` (processes that
            decode), `detailed`, `absent`, `count` (of images) and others; a `Predictor` computes in
            its own precision unless another is given.

    Returns:
        The figures by key, 0 to 1: `miou`, `iou` (by class), `pixel_accuracy` and those that
        docs/evaluation.md lists; `failed` names images that could not be read.

    Raises:
        SetrError: a model or data set that cannot be opened or do not fit, an unknown protocol.
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
        raise SetrError("a bare model: give its ModelInfo as info=, or a model directory")
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
    """A preset's name -> its settings for this model; None gives the model's own."""
    if not isinstance(protocol, str):
        return protocol or info.protocol
    return preset(protocol, own=info.protocol, labels=info.labels, grid=grid_size(model))


def grid_size(model: SETR | ExportedModel) -> tuple[int, int] | None:
    """(height, width) in pixels that a model's position grid is made for; None without one."""
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
    """Test a model on a split under `info.protocol`.

    With `torch.distributed` initialised every process takes its share of the images and returns the
    figures of all of them, the same bits as one process; on GPUs, where neighbours of one size are
    tested together, a pixel on the verge may differ.

    Args:
        model: the model, on any device; its mode is restored afterwards.
        info: classes, normalisation and protocol.
        dataset: a split whose classes equal the model's.
        precision: of the forward pass.
        workers: processes that decode.
        detailed: also boundaries, recall by size, calibration and intervals, which take time.
        absent: classes in neither truth nor prediction: `skip` leaves them out of the means, `zero`
            counts them as 0.
        count: test only so many images, from 1, spread evenly over the split; all by default.
        on_image: called with every image tested by this process.
        stopped: asked before every image (on a GPU before those that are tested together); once it
            is true in any process, all of them give up.

    Returns:
        The figures of `Scorecard.summary`, `protocol` and `seconds`. Images that cannot be read are
        listed in `failed` and counted nowhere else.

    Raises:
        SetrError: no images, none readable, other classes, scores that are not numbers, or a count
            below 1.
        Stopped: in all processes, as `stopped` says.
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
    most = functools.partial(_together, device, info.protocol, model.num_classes)
    done = 0
    with testing(model, dtype), Progress("eval", len(indices)) as progress:
        network = recorded(model)
        for group in _of_one_size(samples, most):
            if stopped():
                break
            if isinstance(group, SetrError):
                card.fail(str(group))
            else:
                for tested in _test_images(network, info, card, dataset, group):
                    if on_image:
                        on_image(tested)
            size = 1 if isinstance(group, SetrError) else len(group)
            done += size
            progress.update(done, images=size)
    if distributed.any_of(stopped()):  # or some would add up counts, and wait for those that left
        raise Stopped
    card.reduce()
    figures = card.summary()
    if not figures["images"]:
        problem = SetrError(
            f"none of the {len(dataset)} images of split '{dataset.split}' of {dataset.name} could "
            f"be tested; first: {figures['failed'][0]}",
            code=DATA_CHECK_FAILED,
        )
        raise distributed.together(problem)
    return {
        **figures,
        "protocol": info.protocol.describe(),
        "seconds": time.monotonic() - began,
    }


_Sample = tuple[int, Tensor, Tensor]
"""Number of an image in the split, the image (1, H, W, C) and its mask (1, H, W)."""


def _together(
    device: torch.device, protocol: Protocol, num_classes: int, height: int, width: int
) -> int:
    """Images of a size that are tested at once."""
    limit = TOGETHER.get(device.type, TOGETHER["cuda"])
    if limit == 1:
        return 1
    try:
        view = protocol.view_size(height, width, max(protocol.scales))
    except SetrError:  # which the test of the image names
        return 1
    sides = (min(pair) for pair in zip(protocol.window or view, view, strict=True))
    scores = TOGETHER_SCORES // (num_classes * height * width)
    return max(1, min(limit, GPU_PIXELS // math.prod(sides), scores))


def _of_one_size(
    samples: Iterable[tuple[int, tuple[Tensor, Tensor] | SetrError]],
    most: Callable[[int, int], int],
) -> Iterator[list[_Sample] | SetrError]:
    """Neighbours of equal size together, at most as many as `most` says of a height and width.

    What could not be read comes alone.
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
        if len(group) >= most(*image.shape[1:3]):
            yield group
            group = []
    if group:
        yield group


def _test_images(
    model: Any, info: ModelInfo, card: Scorecard, dataset: Dataset, group: list[_Sample]
) -> Iterator[ScoredImage]:
    """Predict images of one size at once, or as many as there is memory for; count each."""
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
    if predictions is None:  # not above, where the error holds what was computed
        middle = len(group) // 2
        for part in (group[:middle], group[middle:]):
            yield from _test_images(model, info, card, dataset, part)
        return
    truths = masks.to(device)
    for i, (index, image, mask) in enumerate(group):
        sure = None if confidences is None else confidences[i]
        figures = card.update(index, predictions[i], truths[i], sure)
        yield ScoredImage(
            index,
            names[i],
            as_rgb(image[0].numpy()),
            mask[0].numpy(),
            predictions[i].cpu().numpy(),
            None if sure is None else sure.cpu().numpy(),
            figures,
        )


@contextlib.contextmanager
def testing(model: SETR | ExportedModel, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, a model is in eval mode and computes in a precision, without gradients."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(was_training)


def spread(length: int, count: int) -> list[int]:
    """At most `count` numbers, evenly from 0 to length - 1 with both ends; of one alone, 0."""
    if count >= length:
        return list(range(length))
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]


def require_fit(model: SETR | ExportedModel, info: ModelInfo, dataset: Dataset) -> None:
    """Refuse a split without images or with other classes or channels than the model's."""
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
            "must be the same",
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
    """Refuse also a split none of whose first, middle and last images can be read with its mask.

    For work that needs the split only minutes later.
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
