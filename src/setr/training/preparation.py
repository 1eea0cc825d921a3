"""What precedes the model of a run: its settings completed, its data opened and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from setr import distributed
from setr.catalog import model_settings
from setr.config import Config
from setr.data.dataset import Dataset
from setr.data.order import Extra, Share
from setr.data.own_augmentation import Augment
from setr.data.unlabelled import open_unlabelled, require_readable
from setr.distributed import everywhere, together
from setr.errors import UsageError
from setr.estimate import with_chosen_batch
from setr.hub import holds_model
from setr.model_info import ModelInfo
from setr.processes.progress import counting
from setr.training.build import build_info, require_buildable, require_fitting_weights
from setr.training.facts import require_same_run, run_facts
from setr.training.normalisation import with_normalisation
from setr.training.pixel_counts import checked_pixels
from setr.training.repeats import with_repeats
from setr.training.resolved import build_share, unlabelled_count, with_steps, with_workers
from setr.training.runfolder import RunFolder
from setr.training.splits import open_splits
from setr.training.teacher import Teacher, open_teacher
from setr.weight_files.licences import (
    joined,
    licence_by_name,
    repository_by_name,
    weights_licence,
    weights_repository,
)


class Prepared(NamedTuple):
    """The settings and data of a run, the same in all processes except for the share.

    Attributes:
        config: settings without anything left to choose.
        saved_config: the same for any machine: the number of loader processes may be left open.
        train: training split.
        val: validation split.
        facts: see `facts.py`.
        share: part of every batch that this process computes.
        pixels: (K,) pixel counts of the classes in the training split.
        info: stored with the model.
        teacher: of a run with distillation.
        extra: images without labels, from which it learns with the teacher.
    """

    config: Config
    saved_config: Config
    train: Dataset
    val: Dataset
    facts: dict[str, Any]
    share: Share
    pixels: np.ndarray
    info: ModelInfo
    teacher: Teacher | None
    extra: Extra | None


def prepare(
    config: Config,
    folder: RunFolder,
    data: tuple[Dataset, Dataset] | None,
    augment: Augment | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Prepared:
    """Check all that can be checked before the model is built; quick checks come first.

    Args:
        folder: if it has a state, the run must be the one that it is of.
        data: training and validation split, in place of those that the settings name.
        dtype: of autocast; None for fp32.

    Raises:
        SetrError: in all processes; see `setr.train`.
    """
    distributed.on_first(lambda: require_buildable(config, weights=not folder.state))
    config, train, val = everywhere(partial(open_splits, config, data))
    labels, bands = train.labels, train.bands
    before = folder.state.values["facts"] if folder.state else None
    config = with_normalisation(config, train)
    if not folder.state:
        distributed.on_first(partial(require_fitting_weights, config))
    train = everywhere(partial(with_repeats, config, train))
    config = with_chosen_batch(config, len(labels.classes), len(train), device, before)
    config = with_steps(config, len(train), before)
    share = everywhere(partial(build_share, config, distributed.rank()))
    saved_config, config = config, with_workers(config, device)
    teacher = everywhere(partial(open_teacher, config, labels, bands, device, dtype))
    extra = everywhere(partial(_open_extra, config, train))
    further = (extra.dataset,) if extra else ()
    facts = run_facts(config, train, val, *further, augment=augment)
    if teacher:
        facts["distill.weights"] = teacher.digest
    distributed.require_equal(facts)
    if before:
        distributed.on_first(lambda: require_same_run(folder.out, before, facts))
    done, steps = folder.state.step if folder.state else 0, config.train.steps
    if done > steps:
        problem = f"train.steps {steps}: {folder.out} has {done} already; give at least {done}"
        raise together(UsageError(problem))
    licence, base_model = _origin(config, folder)
    info = replace(
        build_info(config, labels, bands),
        licence=licence,
        base_model=base_model,
        data=train.public_name if train.public_name == val.public_name else None,
        command=_command(config, data, augment),
    )
    pixels = distributed.on_first(lambda: checked_pixels(config, train, val))
    if extra:
        checked = counting("check distill.images")
        distributed.on_first(partial(require_readable, extra.dataset, checked))
    return Prepared(config, saved_config, train, val, facts, share, pixels, info, teacher, extra)


def _origin(config: Config, folder: RunFolder) -> tuple[str | None, str | None]:
    """Licences and repositories of the weights that the run starts from, or as it recorded them."""
    own, model = model_settings(config.model.name, encoder=config.model.encoder), config.model
    encoder, resnet = str(own["encoder"]), str(own.get("resnet"))
    found = (encoder, model.pretrained), (resnet, model.pretrained_resnet)
    weights = [(name, source) for name, source in found if source]
    licence: Callable[[str, str], str | None] = weights_licence
    repository: Callable[[str, str], str | None] = weights_repository
    if weights and folder.state:
        if distributed.on_first(partial(holds_model, folder.out)):
            weights = [(encoder, str(folder.out))]
        else:  # the weights need not be there any more
            licence, repository = licence_by_name, repository_by_name
    return joined(licence(*w) for w in weights), joined(repository(*w) for w in weights)


def _command(config: Config, data: tuple[Dataset, Dataset] | None, augment: Augment | None) -> str:
    """What repeats the run with the settings that lie beside the model."""
    given = {"data=(train, val)": data, "augment=augment": augment}
    objects = [argument for argument, value in given.items() if value is not None]
    if objects:
        return f'setr.train("config.yaml", {", ".join(objects)})'
    return f"setr train config.yaml --out runs/{config.recipe}"


def _open_extra(config: Config, train: Dataset) -> Extra | None:
    if config.distill.images is None:
        return None
    images = open_unlabelled(config.distill.images, train.labels, train.bands)
    return Extra(images, unlabelled_count(config))
