"""Drafts the lists of a folder's splits, where folders and files do not define all of them."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Set

from setr.data.layouts import SPLIT_OF
from setr.errors import DataError

MaskPair = tuple[str, str]
"""An image file and its mask file."""


def draft_lists(
    pairs: list[MaskPair],
    val_share: float,
    known: Mapping[str, str],
    classes: Mapping[str, Set[int]],
) -> dict[str, str]:
    """Text of the list of each split; see `draft_parts`."""
    parts = draft_parts(pairs, val_share, known, classes)
    return {split: list_text(part) for split, part in parts.items()}


def require_listable(names: Iterable[str]) -> None:
    """Refuse names that a line of a list would not give back.

    Raises:
        SetrError: a tab, the end of a line, or a space at an end (exit code 3).
    """
    for name in names:
        if name != name.strip() or set(name) & set("\t\r\n"):
            raise DataError(
                f"{name!a:.200}: a tab, the end of a line, or a space at an end of a name cannot "
                "stand in a list file; rename it"
            )


def list_text(pairs: Iterable[MaskPair]) -> str:
    """Lines of a list file.

    Raises:
        SetrError: as `require_listable`.
    """
    pairs = list(pairs)
    require_listable(name for pair in pairs for name in pair)
    return "".join(f"{image}\t{mask}\n" for image, mask in sorted(pairs))


def draft_parts(
    pairs: list[MaskPair],
    val_share: float,
    known: Mapping[str, str],
    classes: Mapping[str, Set[int]],
) -> dict[str, list[MaskPair]]:
    """The pairs of each split; train and val get at least one pair each if there are two.

    Pairs with a known split, or in a folder named after one (see `known_split`), stay in it, so
    test images are not used for training, unless there are no others. The others are for training;
    if train or val is not known, both are drawn from what there is of them.

    Args:
        val_share: fraction of pairs for a validation split that is drawn.
        known: split by image.
        classes: ids of the classes in each mask.
    """
    parts: dict[str, list[MaskPair]] = {}
    for pair in pairs:
        parts.setdefault(known_split(pair[0], known), []).append(pair)
    train = [*parts.pop("train", []), *parts.pop("", [])]
    if not train or "val" not in parts:
        rest = [*train, *parts.pop("val", [])] or parts.pop("test")
        parts |= drawn_split(rest, val_share, classes)
    else:
        parts["train"] = train
    return parts


def known_split(image: str, known: Mapping[str, str]) -> str:
    """The split of an image: the known one, or that of a folder's name; empty without any.

    A folder may be called `train`, or have that as a word of its name (`train_img`), unless other
    words of it name another split (`train_val`).
    """
    if image in known:
        return known[image]
    folders = image.lower().split("/")[:-1]
    named = ({SPLIT_OF[w] for w in re.findall("[a-z]+", f) if w in SPLIT_OF} for f in folders)
    return next((min(splits) for splits in named if len(splits) == 1), "")


def drawn_split(
    pairs: list[MaskPair], val_share: float, classes: Mapping[str, Set[int]]
) -> dict[str, list[MaskPair]]:
    """A split by checksums of the names, which changes little when files are added.

    Pairs are then exchanged, rare classes first, until every class in at least two masks is in both
    parts. A class stays in one part if any exchange would remove another class from a part.
    """
    order = sorted(pairs, key=lambda pair: checksum(pair[0]))
    count = min(max(1, round(len(order) * val_share)), max(len(order) - 1, 1))
    parts = _Parts(order[:count], order[count:], classes)
    for rare in parts.shared_classes():
        parts.spread(rare)
    val, train = parts.pairs
    return {"val": val, "train": train or order}


def checksum(name: str) -> int:
    """A number by which names are in an order that has nothing to do with what they say."""
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))


class _Parts:
    """Two parts of a split, and the number of masks of each class in them."""

    def __init__(
        self, first: list[MaskPair], second: list[MaskPair], classes: Mapping[str, Set[int]]
    ) -> None:
        self.pairs, self.classes = (first, second), classes
        self.counts = tuple(
            Counter(c for _, mask in part for c in classes[mask]) for part in self.pairs
        )
        self.totals = self.counts[0] + self.counts[1]

    def shared_classes(self) -> list[int]:
        """Classes in at least two masks, rare ones first."""
        shared = (c for c, count in self.totals.items() if count > 1)
        return sorted(shared, key=lambda c: (self.totals[c], c))

    def spread(self, wanted: int) -> None:
        """Exchange two pairs if one part lacks a class that the other has."""
        for lacking in (0, 1):
            if not self.counts[lacking][wanted]:
                found = self._exchange(lacking, wanted)
                if found is not None:
                    self._swap(lacking, *found)

    def _exchange(self, lacking: int, wanted: int) -> tuple[int, int] | None:
        """Places of the pairs to exchange, in the lacking part and the other; None if none fit."""
        ours, theirs = self.pairs[lacking], self.pairs[1 - lacking]
        for there, (_, mask) in enumerate(theirs):
            given = self.classes[mask]
            if wanted not in given:
                continue
            for here in reversed(range(len(ours))):
                lost = self.classes[ours[here][1]]
                if not (
                    self._is_last(lacking, lost - given) or self._is_last(1 - lacking, given - lost)
                ):
                    return here, there
        return None

    def _is_last(self, part: int, classes: Set[int]) -> bool:
        """Whether a part has just one mask of a class that is in several masks."""
        return any(self.counts[part][c] == 1 and self.totals[c] > 1 for c in classes)

    def _swap(self, lacking: int, here: int, there: int) -> None:
        ours, theirs = self.pairs[lacking], self.pairs[1 - lacking]
        lost, given = self.classes[ours[here][1]], self.classes[theirs[there][1]]
        self.counts[lacking].update(given)
        self.counts[lacking].subtract(lost)
        self.counts[1 - lacking].update(lost)
        self.counts[1 - lacking].subtract(given)
        ours[here], theirs[there] = theirs[there], ours[here]
