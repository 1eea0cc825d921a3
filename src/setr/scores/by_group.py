"""Figures of groups of images (streaming), such as all slices of a patient or frames of a video.

Images of a group are alike, so they are no independent samples: means, intervals and tests over
groups count each group once, whatever its number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from setr.data.name_groups import groups_of
from setr.metrics import by_class, class_pixels, mean_of, ratio
from setr.scores.intervals import mean_interval, paired_difference


@dataclass(frozen=True)
class Groups:
    """The groups of a split's images.

    Attributes:
        pattern: of the images' names, in which * stands for the group.
        names: of the groups, G in all.
        of_image: number of the group by the index of the image.
    """

    pattern: str
    names: tuple[str, ...]
    of_image: tuple[int, ...]

    @classmethod
    def by_name(cls, images: Sequence[str], pattern: str) -> Groups:
        """The groups of images with these names.

        Raises:
            SetrError: a name that does not fit the pattern, or a single group (exit code 2).
        """
        found = groups_of(images, pattern)
        names = sorted(set(found.values()))
        numbers = {name: number for number, name in enumerate(names)}
        return cls(
            pattern,
            tuple(" ".join(name.split("\n")) for name in names),
            tuple(numbers[found[image]] for image in images),
        )


class GroupCounts:
    """Pixels of each group.

    Args:
        groups: of the images.
        num_classes: K.
    """

    def __init__(self, groups: Groups, num_classes: int) -> None:
        self.groups = groups
        # per group and class: hits, truth pixels, predicted pixels
        self.counts = np.zeros((len(groups.names), 3, num_classes), dtype=np.int64)
        self.images = np.zeros(len(groups.names), dtype=np.int64)

    def update(self, index: int, matrix: np.ndarray) -> None:
        """Count one image of the split by its confusion matrix (K, K+1), truth in rows."""
        group = self.groups.of_image[index]
        self.counts[group] += class_pixels(matrix)
        self.images[group] += 1

    @property
    def labelled(self) -> int:
        """Number of groups with a labelled pixel."""
        return int(self.counts[:, 1].any(axis=1).sum())

    def summary(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Figures of all groups with an image.

        Returns:
            `by`, the pattern; `each`, by group its `images`, `miou` and, by class, `dice` and
            `iou`; and `dice` and `iou`, for each class their `mean` over the groups that have it in
            truth or prediction, its bootstrap 95 % `interval` and the number of these `groups`.
        """
        hits, truth, predicted = np.moveaxis(self.counts, 1, 0).astype(np.float64)
        values = {
            "dice": ratio(2 * hits, truth + predicted),
            "iou": ratio(hits, truth + predicted - hits),
        }
        each = {
            name: {"images": int(self.images[g]), "miou": mean_of(values["iou"][g])}
            | {key: by_class(classes, table[g]) for key, table in values.items()}
            for g, name in enumerate(self.groups.names)
            if self.images[g]
        }
        means = {
            key: {name: _mean(table[:, k]) for k, name in enumerate(classes)}
            for key, table in values.items()
        }
        return {"by": self.groups.pattern, **means, "each": each}


def _mean(values: np.ndarray) -> dict[str, Any]:
    values = values[~np.isnan(values)]
    return {"mean": mean_of(values), "interval": mean_interval(values), "groups": len(values)}


def paired_groups(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Two models compared group by group.

    Args:
        ours: a summary of `GroupCounts`.
        theirs: the same of the other model.

    Returns:
        `paired_difference` of the groups' mIoU, and under `dice` that of each class's Dice, over
        the groups that have it with both models; without such groups a class is left out.

    Raises:
        SetrError: no group with an mIoU of both models.
    """
    both = [(row, theirs["each"][name]) for name, row in ours["each"].items()
            if name in theirs["each"]]  # fmt: skip

    def compared(values: list[tuple[float | None, float | None]]) -> dict[str, Any]:
        kept = [pair for pair in values if None not in pair]
        found = paired_difference(*np.array(kept, dtype=np.float64).reshape(-1, 2).T)
        return {"groups": found.pop("images"), **found}

    by_dice = {name: [(a["dice"][name], b["dice"][name]) for a, b in both] for name in ours["dice"]}
    return compared([(a["miou"], b["miou"]) for a, b in both]) | {
        "dice": {
            name: compared(pairs)
            for name, pairs in by_dice.items()
            if any(None not in pair for pair in pairs)
        }
    }
