"""Images with rare classes, repeated in the training split: repeat factor sampling.

A class that occurs in the share f of the images has the factor sqrt(threshold / f), and at least 1;
an image has the largest factor of its classes (Gupta et al., LVIS, CVPR 2019, section 4). Unlike
there, what is left of a factor after its whole part is drawn once for the run, so that the split
stays the same in every epoch.
"""

from __future__ import annotations

import numpy as np

from setr import distributed
from setr.config import Config
from setr.data.dataset import Dataset
from setr.data.survey_rows import Survey
from setr.distributed import say
from setr.doctor import check
from setr.processes.progress import counting


def repeat_counts(survey: Survey, num_classes: int, threshold: float, seed: int) -> np.ndarray:
    """(N,) how often each image is in an epoch, at least once.

    Args:
        num_classes: K.
        threshold: share of the images, 0 to 1, below which a class is rare.
    """
    shares = survey.images(num_classes) / len(survey.ends)
    factors = np.ones(256)
    factors[:num_classes] = np.maximum(1, np.sqrt(threshold / np.maximum(shares, 1e-9)))
    lengths = np.diff(survey.ends, prepend=0)
    images = np.repeat(np.arange(len(lengths)), lengths)
    largest = np.ones(len(lengths))
    np.maximum.at(largest, images, factors[survey.classes])
    draws = np.random.default_rng(seed).random(len(largest))
    return np.floor(largest + draws).astype(np.int64)


def with_repeats(config: Config, train: Dataset) -> Dataset:
    """The training split with the repeats that `data.repeat_rare` asks for.

    Raises:
        SetrError: no images, or shards, which are read in sequence.
    """
    threshold = config.data.repeat_rare
    if not threshold:
        return train
    train.part([0])  # refuse shards before their masks are read
    counts = distributed.on_first(lambda: _counts(train, threshold, config.train.seed))
    if counts.max() == 1:
        say(f"data.repeat_rare {threshold:g}: every class is frequent enough; no image is repeated")
        return train
    repeated = np.repeat(np.arange(len(counts)), counts)
    say(
        f"data.repeat_rare: {np.count_nonzero(counts > 1)} of {len(counts)} images are repeated, "
        f"up to {counts.max()} times: {len(repeated)} in an epoch"
    )
    return train.part(repeated.tolist())


def _counts(train: Dataset, threshold: float, seed: int) -> np.ndarray:
    survey = check(train, progress=counting(f"classes of {train.split}")).survey
    if survey.problems:  # which the check of the whole data reports
        return np.ones(len(train), np.int64)
    return repeat_counts(survey, len(train.labels.classes), threshold, seed)
