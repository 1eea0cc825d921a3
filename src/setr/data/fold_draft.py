"""Drafts the lists of folds for cross-validation, and of splits that keep groups together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from setr.data.split_draft import MaskPair, checksum, draft_parts, known_split, list_text
from setr.errors import SetrError, UsageError
from setr.reading.files import printable


def grouped_lists(
    pairs: list[MaskPair],
    val_share: float,
    known: Mapping[str, str],
    classes: Mapping[str, Set[int]],
    groups: Mapping[str, str],
) -> dict[str, str]:
    """As `draft_lists`, but of whole groups, of which `val_share` is drawn for validation.

    Raises:
        SetrError: a group of which known splits have parts (exit code 2).
    """
    members = _members(pairs, groups)
    splits = {}
    for group, own in members.items():
        splits[group], *others = sorted({known_split(image, known) for image, _ in own})
        if others:
            raise _straddling(own, [splits[group], *others])
    drawn = draft_parts(
        [(group, group) for group in members],
        val_share,
        splits,
        {g: frozenset(c for _, m in own for c in classes[m]) for g, own in members.items()},
    )
    return {
        split: list_text(pair for group, _ in found for pair in members[group])
        for split, found in drawn.items()
    }


def draft_folds(
    pairs: list[MaskPair],
    count: int,
    known: Mapping[str, str],
    classes: Mapping[str, Set[int]],
    groups: Mapping[str, str],
) -> dict[str, str]:
    """Text of the list of each fold (`fold1`, …), and of `test` if there are images for it.

    Folds have about as many images, and images of each rare class. They do not depend on the order
    of the pairs.

    Args:
        pairs: all pairs; those for training and for validation are divided anew.
        known: split by image.
        classes: ids of the classes in each mask.
        groups: by image; empty if each is a group of its own.

    Raises:
        SetrError: fewer groups than folds, or a group of which some images are for testing (exit
            code 2).
    """
    members = _members(pairs, groups)
    test: list[MaskPair] = []
    for group, own in list(members.items()):
        kept = [pair for pair in own if known_split(pair[0], known) == "test"]
        if kept and len(kept) < len(own):
            raise _straddling(own, ["test", "folds"])
        if kept:
            test += members.pop(group)
    if len(members) < count:
        what = "groups" if groups else "images"
        raise UsageError(f"--folds {count}: there are only {len(members)} {what}")
    inside = {g: Counter(c for _, mask in own for c in classes[mask]) for g, own in members.items()}
    totals = sum(inside.values(), Counter[int]())
    rarest = {
        g: min(found, key=lambda c: (totals[c], c), default=-1) for g, found in inside.items()
    }
    folds: list[list[MaskPair]] = [[] for _ in range(count)]
    having: list[Counter[int]] = [Counter() for _ in range(count)]
    large_first = sorted(members, key=lambda g: (-len(members[g]), checksum(g)))
    for group in sorted(large_first, key=lambda g: totals[rarest[g]]):
        rare = rarest[group]
        chosen = min(range(count), key=lambda k: (having[k][rare], len(folds[k]), k))
        folds[chosen] += members[group]
        having[chosen].update(inside[group])
    lists = {f"fold{k}": list_text(fold) for k, fold in enumerate(folds, 1)}
    return {**lists, "test": list_text(test)} if test else lists


def _straddling(own: Sequence[MaskPair], splits: Sequence[str]) -> SetrError:
    shown = " and ".join(split or "no split" for split in splits)
    return UsageError(
        f"--group-by: the group of {printable(own[0][0])} has images in {shown}, because of "
        "folders or lists; move them into one"
    )


def _members(pairs: Sequence[MaskPair], groups: Mapping[str, str]) -> dict[str, list[MaskPair]]:
    found: dict[str, list[MaskPair]] = {}
    for pair in pairs:
        found.setdefault(groups.get(pair[0], pair[0]), []).append(pair)
    return found
