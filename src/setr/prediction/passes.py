"""Forward passes over images of one size: batched where results stay the same bit for bit.

The first full batch of every size is also run one by one; where the two differ (fp32 matrix
products round differently for another number of rows), that size continues one by one. An image
that does not fit into memory becomes an error of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from setr.errors import SetrError
from setr.predictor import Predictor
from setr.processes.faults import is_out_of_memory
from setr.result import Result

T = TypeVar("T")

BATCH_PIXELS = 4_000_000
"""Larger images are run alone: one of them keeps any device busy."""


class NoMemoryError(SetrError):
    """An image that does not fit into memory."""


def attempt(compute: Callable[[], T], shape: Sequence[int]) -> T | SetrError:
    """The result of a computation on an image of this shape (H, W, …), or why it failed."""
    try:
        return compute()
    except SetrError as error:
        return error.with_traceback(None)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # returned, not raised: its traceback would keep alive what did not fit
        size = f"{shape[1]}x{shape[0]}"
        return NoMemoryError(f"{size} pixels do not fit into memory; give the model a window")


def predict_each(
    predictor: Predictor, images: Sequence[np.ndarray], *, together: bool = True
) -> list[Result | SetrError]:
    """Results of images of one size: in one pass, or one by one, also where one pass fails."""
    if together and len(images) > 1:
        found = attempt(partial(predictor.predict_batch, images), images[0].shape)
        if not isinstance(found, SetrError):
            return list(found)
    return [attempt(partial(_predict, predictor, image), image.shape) for image in images]


def _predict(predictor: Predictor, image: np.ndarray) -> Result:
    return predictor.predict_batch([image])[0]


class Batches:
    """Runs images of one size, together where that is allowed.

    Args:
        batch: images per pass.
        exact: batch only where results stay the same; otherwise every pass has `batch` images,
            padded with black ones.
    """

    def __init__(self, predictor: Predictor, batch: int, exact: bool) -> None:
        self.predictor, self.batch, self.exact = predictor, batch, exact
        self.same: dict[tuple[int, ...], bool] = {}  # by shape: batched == one by one

    def run(self, images: list[np.ndarray]) -> list[Result | SetrError]:
        """Results of up to `batch` images of one size, or why there is none."""
        shape, count = images[0].shape, len(images)
        singly = partial(predict_each, self.predictor, images, together=False)
        if self.batch == 1 or shape[0] * shape[1] > BATCH_PIXELS:
            return singly()
        if not self.exact:
            black = [np.zeros(shape, np.uint8)] * (self.batch - count)
            return predict_each(self.predictor, images + black)[:count]
        if count < self.batch or self.same.get(shape) is False:
            return singly()
        found = predict_each(self.predictor, images)
        if shape not in self.same:
            single = singly()
            self.same[shape] = all(map(_equal, found, single))
            return single
        return found


def _equal(one: Result | SetrError, other: Result | SetrError) -> bool:
    return (
        isinstance(one, Result)
        and isinstance(other, Result)
        and np.array_equal(one.mask, other.mask)
        and np.array_equal(one.confidence, other.confidence)
    )
