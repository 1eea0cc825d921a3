"""Checks that a data set fits a model, before anything is computed."""

from __future__ import annotations

from setr.data.dataset import Dataset
from setr.data.sampling import evenly_spaced
from setr.errors import DataError, SetrError
from setr.model_info import ModelInfo, require_own
from setr.opening import Trained


def require_fit(model: Trained, info: ModelInfo, dataset: Dataset) -> None:
    """Raise an error if a split has no images, or other classes or channels than the model."""
    if not len(dataset):
        raise DataError(f"split '{dataset.split}' of {dataset.name} has no images")
    require_own(model, info)
    if dataset.channels != len(info.mean):
        raise DataError(
            f"the model takes {len(info.mean)} channels but the images of {dataset.name} have "
            f"{dataset.channels}; name as many under 'bands' in its data.yaml"
        )
    ours, theirs = info.labels.classes, dataset.labels.classes
    if len(theirs) != model.num_classes:
        raise DataError(
            f"the model has {model.num_classes} classes but {dataset.name} has {len(theirs)}; they "
            "must be equal"
        )
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.casefold().strip() != b.casefold().strip():
            raise DataError(
                f"class {number} is '{a}' in the model but '{b}' in {dataset.name}; the classes "
                "must be the same, in the same order (edit 'classes' and 'label_map' of the data; "
                "`setr convert CHECKPOINT --labels DATA` names those of a checkpoint)"
            )


def require_labelled(model: Trained, info: ModelInfo, dataset: Dataset) -> None:
    """As `require_fit`; also raise an error if neither first, middle nor last pair can be read.

    For commands that need the split only minutes later.
    """
    require_fit(model, info, dataset)
    problems = []
    for index in evenly_spaced(len(dataset), 3):
        try:
            dataset.load(index)
        except SetrError as error:
            problems.append(error)
        else:
            return
    raise DataError(str(problems[0]))
