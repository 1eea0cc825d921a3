"""Class probabilities that are computed when they are asked for, by a second run of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from setr.errors import SetrError


class LateScores:
    """Computes the scores (K, H, W) of one image; pickling drops the model."""

    def __init__(self, compute: Callable[[], np.ndarray]) -> None:
        self.compute = compute

    def __call__(self) -> np.ndarray:
        """The scores.

        Raises:
            SetrError: this was pickled.
        """
        return self.compute()

    def __deepcopy__(self, _: dict[int, Any]) -> LateScores:
        return self

    def __reduce__(self) -> tuple[type[LateScores], tuple[Callable[[], np.ndarray]]]:
        return LateScores, (left_behind,)


def left_behind() -> np.ndarray:
    """Takes the place of the model after unpickling."""
    raise SetrError(
        "scores: need the model, which a pickled result does not have; read result.scores before "
        "pickling"
    )
