"""The classes that an overlay or polygons show, where not all are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from setr.errors import UsageError, first_few, nearest
from setr.labels import IGNORE


def chosen_ids(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Training ids of the named classes in ascending order, of all if none is named.

    Args:
        names: of the wanted classes.
        classes: of the model.

    Raises:
        SetrError: a name that no class has; the nearest is suggested.
    """
    for name in names:
        if name not in classes:
            near = nearest(name, classes)
            hint = f"did you mean '{near}'?" if near else f"the model has {first_few(classes, 20)}"
            raise UsageError(f"classes '{name}': is not a class of the model; {hint}")
    wanted = names or classes
    return tuple(number for number, name in enumerate(classes) if name in wanted)


def shown_only(
    picture: np.ndarray, behind: np.ndarray, mask: np.ndarray, ids: Sequence[int]
) -> np.ndarray:
    """A picture where the mask has one of these ids, and what is behind it elsewhere.

    Args:
        picture: uint8 RGB (H, W, 3).
        behind: of the same shape.
        mask: training ids (H, W).
        ids: below `IGNORE`.
    """
    shown = np.zeros(IGNORE + 1, bool)
    shown[list(ids)] = True
    return np.where(shown[mask][..., None], picture, behind)
