"""Evaluates a model on a split of a data set under a protocol.

Memory does not depend on the number of images, of which only integer counts are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from setr import distributed
from setr.arguments.choices import Absent, Precision
from setr.arguments.elsewhere_python import answers_keywords
from setr.arguments.typed import require_known
from setr.data.dataset import Dataset
from setr.data.loader import whole_images
from setr.data.sampling import evenly_spaced
from setr.datasets import open_dataset
from setr.distributed import rank, world
from setr.ensemble import Ensemble
from setr.errors import DataError, SetrError, UsageError
from setr.exporting.runtime import ExportedModel
from setr.fitting import require_fit
from setr.kernels.recorded import recorded
from setr.layers.precision import autocast, autocast_dtype
from setr.model_info import ModelInfo
from setr.opening import Trained, open_trained
from setr.processes.interrupt import Stopped
from setr.processes.progress import Progress
from setr.protocols import Protocol, preset
from setr.scores.by_group import Groups
from setr.scores.scorecard import Scorecard
from setr.scores.scored_images import (
    Measure,
    ScoredImage,
    fitting,
    grouped_by_size,
    max_together,
    score_images,
)
from setr.scores.split_loss import SplitLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PassOptions(TypedDict, total=False):
    """Keyword arguments of `evaluate_split` on how to pass through a split."""

    precision: Precision
    workers: int
    stopped: Callable[[], bool]


class EvaluationOptions(PassOptions, total=False):
    """Keyword arguments of `evaluate_split`, which explains them."""

    detailed: bool
    absent: Absent
    count: int | None
    group_by: str | None
    on_image: Callable[[ScoredImage], None] | None


@answers_keywords("evaluate")
def evaluate(
    model: Any,
    data: str | os.PathLike | Dataset,
    *,
    protocol: str | Protocol | None = None,
    split: str = "val",
    info: ModelInfo | None = None,
    **options: Unpack[EvaluationOptions],
) -> dict[str, Any]:
    """Evaluate a model, for example `evaluate("runs/x", "data/camvid", protocol="paper-ms")`.

    Args:
        model: a trained model as `setr.load` takes it, a `Predictor`, or a `SETR` together with
            `info`.
        data: a folder, a YAML file, `scenes`, or an opened split.
        protocol: a name in `setr.protocols.PRESETS`, a `Protocol`, or None for the model's own.
        split: the split of `data` to use.
        info: normalisation, classes and protocol: of a `SETR`, or in place of the model's own.
        options: keyword arguments of `evaluate_split`, such as `precision`, `workers`, `detailed`,
            `absent`, `count` and `group_by`; the precision of a `Predictor` is its own by default.

    Returns:
        Metrics by name, 0 to 1: `miou`, `iou` (by class), `pixel_accuracy` and others listed in
        docs/evaluation.md; `failed` has an error for each image that could not be read.

    Raises:
        SetrError: model or data set cannot be opened or do not match, or an unknown protocol.
        TypeError: another keyword.
    """
    require_known("evaluate", options, EvaluationOptions)
    if isinstance(model, str | os.PathLike | list | tuple):
        model, own = open_trained(model)
        model.to(distributed.device())
        info = info or own
    elif hasattr(model, "info"):
        options.setdefault("precision", model.precision)
        model, info = model.model, info or model.info
    info = checked_info(info)
    if not isinstance(data, str | os.PathLike | Dataset):
        raise UsageError(
            f"data {type(data).__name__}: give a path, or one split of setr.wrap_dataset or "
            "setr.open_dataset"
        )
    dataset = (
        data
        if isinstance(data, Dataset)
        else open_dataset(str(data), split, info.labels, info.bands)
    )
    info = dataclasses.replace(info, protocol=resolve_protocol(protocol, model, info))
    return evaluate_split(model, info, dataset, **options)


def checked_info(info: ModelInfo | None) -> ModelInfo:
    """The info of a model in memory.

    Raises:
        SetrError: it was not given, or something else was.
    """
    if not isinstance(info, ModelInfo):
        given = "" if info is None else f", not {type(info).__name__}"
        raise UsageError(
            f"a SETR model: also give its ModelInfo as info={given}, or give a model directory"
        )
    return info


def resolve_protocol(protocol: str | Protocol | None, model: Trained, info: ModelInfo) -> Protocol:
    """The protocol of this name for a model; None stands for the model's own."""
    if not isinstance(protocol, str):
        return protocol or info.protocol
    return preset(protocol, own=info.protocol, labels=info.labels, grid=grid_size(model))


def grid_size(model: Trained) -> tuple[int, int] | None:
    """(height, width) in pixels of the model's position embedding; None without one."""
    if isinstance(model, ExportedModel):
        return model.grid
    if isinstance(model, Ensemble):
        model = model.networks[0]
    vit = getattr(getattr(model, "encoder", None), "vit", None)
    patches = getattr(vit, "patch_embed", None)
    if patches is None:
        return None
    height, width = patches.img_size
    return height, width


def evaluate_split(
    model: Trained,
    info: ModelInfo,
    dataset: Dataset,
    *,
    precision: Precision = "auto",
    workers: int = 1,
    detailed: bool = True,
    absent: Absent = "skip",
    count: int | None = None,
    group_by: str | None = None,
    loss: SplitLoss | None = None,
    measure: Measure | None = None,
    on_image: Callable[[ScoredImage], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Evaluate a model on a split under `info.protocol`.

    If `torch.distributed` is initialised, every process evaluates its share of the images and
    returns the metrics of all. They are bit-identical to those of one process, except on GPUs,
    where images of equal size are predicted in groups and near-ties may be decided differently.

    Args:
        model: the model, on any device; its training mode is restored afterwards.
        dataset: a split with the classes of the model.
        workers: processes that load images.
        detailed: also compute boundary scores, recall by size, calibration and intervals, which is
            slower.
        absent: what to do with classes in neither truth nor prediction: `skip` leaves them out of
            the means, `zero` counts them as 0.
        count: number of images to use, evenly spaced over the split; all by default.
        group_by: pattern of the images' names, as `images/*_{any}`, in which * stands for the group
            (a patient, a video): adds figures of each group, and intervals are over groups.
        loss: adds up the loss of all images, from the scores that their classes come from.
        measure: computes a number for each pixel from its scores, for `on_image`.
        on_image: called with every image of this process.
        stopped: called before every image, or group of images on a GPU; once it returns true in any
            process, all of them stop. So they do if one of them fails, and all raise its error.

    Returns:
        `Scorecard.summary`, `protocol` and `seconds`, with `loss` also its mean by its name, which
        several processes round differently. Images that cannot be read, or would be enlarged too
        far, are only listed in `failed`.

    Raises:
        SetrError: no images, none readable, other classes, NaN scores, a count below 1, or names
            that do not fit `group_by`.
        Stopped: in all processes, if `stopped` returned true in one.
    """
    require_fit(model, info, dataset)
    if count is not None and count < 1:
        raise UsageError(f"count {count}: give at least one image")
    if workers < 0:
        raise UsageError(f"workers {workers}: give 0 or more")
    device = _device_of(model)
    dtype = computed_in(model, precision, device)
    groups = image_groups(dataset, group_by) if group_by else None
    card = Scorecard(
        dataset.labels.classes, device, detailed=detailed, absent=absent, groups=groups
    )
    began = time.monotonic()
    chosen = range(len(dataset)) if count is None else evenly_spaced(len(dataset), count)
    indices = chosen[rank() :: world()]
    loaded = zip(indices, whole_images(dataset, workers, indices), strict=True)
    samples = fitting(loaded, dataset, info.protocol)
    group_size = functools.partial(max_together, device, info.protocol, model.num_classes)

    def ends() -> bool:
        return stopped() or distributed.heard_of(False)

    done = 0
    problem: Exception | None = None
    try:
        with testing(model, dtype), Progress("eval", len(indices)) as progress:
            network = recorded(model)
            for group in progress.fed_by(grouped_by_size(samples, group_size)):
                if ends():
                    break
                if isinstance(group, SetrError):
                    card.fail(str(group))
                else:
                    for scored in score_images(network, info, card, dataset, group, loss, measure):
                        if on_image:
                            on_image(scored)
                size = 1 if isinstance(group, SetrError) else len(group)
                done += size
                progress.update(done, images=size)
    except Exception as error:
        with_signal = isinstance(error, RuntimeError) and ends()  # which ends workers, too
        if world() == 1 and not with_signal:
            raise
        problem = None if with_signal else error
        distributed.heard_of(True)  # the others need not finish
    if distributed.any_of(ends() or problem is not None):  # the reduction waits for all
        distributed.raise_everywhere(problem)
        raise Stopped(*card.failed)
    card.reduce()
    figures = card.summary()
    if not figures["images"]:
        raise distributed.together(none_tested(dataset, figures["failed"][0]))
    if loss:
        loss.reduce()
        figures[loss.name] = loss.mean()
    return {**figures, "protocol": info.protocol.describe(), "seconds": time.monotonic() - began}


def measure_split(
    model: Trained,
    info: ModelInfo,
    dataset: Dataset,
    measure: Measure,
    on_image: Callable[[ScoredImage], None],
    **options: Unpack[PassOptions],
) -> tuple[list[str], bool]:
    """Pass the images of a split with a measure of each pixel to `on_image`.

    Args:
        options: those of `evaluate_split`.

    Returns:
        A line for each image that could not be read, and whether all images were seen: once
        `stopped` returns true, the others are not.
    """
    try:
        figures = evaluate_split(
            model,
            info,
            dataset,
            detailed=False,
            measure=measure,
            on_image=on_image,
            **options,
        )
    except Stopped as stop:
        return list(stop.args), False
    return figures["failed"], True


def _device_of(model: Trained) -> torch.device:
    """The device of a model's weights; the CPU for one without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def image_groups(dataset: Dataset, pattern: str) -> Groups:
    """The groups of a split's images by their names.

    Raises:
        SetrError: a name that does not fit the pattern, or a single group.
    """
    return Groups.by_name([dataset.image_name(i) for i in range(len(dataset))], pattern)


def none_tested(dataset: Dataset, first: object) -> SetrError:
    """The error of a split without any readable image; `first` says why of one."""
    place = f"split '{dataset.split}' of {dataset.name}" if dataset.split else dataset.name
    return DataError(
        f"none of the {len(dataset)} images of {place} could be tested; the first: {first}"
    )


def computed_in(model: Trained, precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a precision for this model; None without autocast.

    Autocast takes float32 and bfloat16 weights. A model in another type (`model.half()`) runs in
    that type.

    Raises:
        SetrError: as `autocast_dtype`; or bf16 or fp16 for a model of another type.
    """
    dtype = autocast_dtype(precision, device)
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype is None or own in (torch.float32, torch.bfloat16):
        return dtype
    if precision != "auto":
        name = str(own).removeprefix("torch.")
        raise UsageError(
            f"precision {precision}: the model's weights are {name}, and stay so; leave precision "
            "out, or call model.float() first"
        )
    return None


@contextlib.contextmanager
def testing(model: Trained, dtype: torch.dtype | None) -> Iterator[None]:
    """Context with the model in eval mode, autocast to `dtype`, and no gradients."""
    device = _device_of(model)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, dtype):
            yield
    finally:
        model.train(was_training)
