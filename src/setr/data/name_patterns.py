"""Files that belong together by two patterns for their names: images, and masks or parts of masks.

In an image and its mask, wildcards of a pattern stand for equal text. `{any}` stands for text that
may differ, `{class}` for the name of the class that a mask is of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from setr.data.pairing import is_file
from setr.errors import SetrError, UsageError
from setr.reading.files import composed, printable, stem_of

_WILDCARDS = {
    r"**/": "((?:.+/)?)",
    "**": "(.*)",
    "*": "([^/]*)",
    "{number}": "0*([0-9]+)",
    "{any}": "[^/]*",
    "{class}": "(?P<class_name>[^/]+)",
}
"""Regular expression of each wildcard: any folders or none, any text, text without a slash, a
number whatever its leading zeros; and text without a slash that need not be equal."""
_FREE = ("{any}", "{class}")
"""Wildcards for what need not be equal."""
_WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\{number\}|\{any\}|\{class\})")

Key = tuple[str, ...]
"""What the wildcards stand for that must be equal in an image and its masks."""


def pairs_by_pattern(
    files: Sequence[str], images: str, masks: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Images and masks whose names agree in what the wildcards stand for.

    Args:
        files: paths of images and masks, relative to one folder.
        images: pattern of the images. `*` stands for any text within a name, `**` also for
            folders, `{number}` for a number. A pattern without a file ending matches any.
        masks: pattern of the masks, with as many of these wildcards. Both may have `{any}` besides.

    Returns:
        The pairs, and the images without a mask. A file that matches both patterns is a mask.

    Raises:
        SetrError: another number of wildcards, or several files that agree (exit code 2).
    """
    parts, unpaired = parts_by_pattern(files, images, masks)
    for found in parts.values():
        if len(found) > 1:
            raise _agree("--masks", masks, found[0][1], found[1][1])
    return [(image, found[0][1]) for image, found in parts.items()], unpaired


def parts_by_pattern(
    files: Sequence[str], images: str, masks: str
) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """Images and all masks whose names agree with theirs.

    Args:
        files: see `pairs_by_pattern`.
        images: the same.
        masks: the same; may have one `{class}`.

    Returns:
        For each image the classes (empty without `{class}`) and files of its masks, and the images
        without any. With `{class}` or `{any}`, a file that fits both patterns is a mask only if it
        is that of another image.

    Raises:
        SetrError: another number of wildcards, `{class}` in the wrong place, or several images that
            agree (exit code 2).
    """
    counts = [len(_wildcards(pattern)) for pattern in (images, masks)]
    if counts[0] != counts[1] or not counts[0]:
        raise UsageError(
            f"--images {images} --masks {masks}: give both the same number of *, one or more; what "
            "they stand for must be equal in an image and its mask"
        )
    if "{class}" in images or masks.count("{class}") > 1:
        raise UsageError(
            f"--images {images} --masks {masks}: {{class}} stands for the class that a mask is of; "
            "give it once, in --masks"
        )
    of_images, of_masks = _Pattern(images), _Pattern(masks)
    own = {name: fit[0] for name in files if (fit := next(of_images.fits(name), None))}
    keys, taken = set(own.values()), set()
    for name in own:
        is_exact = not of_masks.is_free and of_masks.matches(name)
        if any(key != own[name] and key in keys for key, _ in of_masks.fits(name)) or is_exact:
            taken.add(name)
    image_of: dict[Key, str] = {}
    for name, key in own.items():
        if name not in taken and (first := image_of.setdefault(key, name)) != name:
            raise _agree("--images", images, first, name)
    parts: dict[str, list[tuple[str, str]]] = {}
    for name in files:
        if name not in own or name in taken:
            fitting = (fit for fit in of_masks.fits(name) if fit[0] in image_of)
            for key, class_name in islice(fitting, 1):
                parts.setdefault(image_of[key], []).append((class_name, name))
    return parts, [image for image in image_of.values() if image not in parts]


def fitting_keys(names: Sequence[str], pattern: str) -> dict[str, Key]:
    """What `*`, `**` and `{number}` of a pattern stand for in the names that fit it."""
    chosen = _Pattern(pattern)
    return {name: fit[0] for name in names if (fit := next(chosen.fits(name), None))}


def has_parts(masks: str) -> bool:
    """Whether an image may have several masks by this pattern."""
    return any(word in masks for word in _FREE)


def require_relative(root: Path, option: str, pattern: str) -> None:
    """Refuse a pattern that leads out of the folder."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or not pattern:
        raise UsageError(f"{option} {pattern or repr('')}: give a path below {root}")


class _Pattern:
    """A pattern for the paths of files."""

    def __init__(self, pattern: str) -> None:
        pattern = composed(pattern)
        self._words = [word for word in _WILDCARD.split(pattern) if word]
        forms = [_WILDCARDS.get(word) or re.escape(word) for word in self._words]
        self._forms, self._whole = list(map(re.compile, forms)), re.compile("".join(forms))
        self._read = composed if is_file(pattern) else stem_of
        self.is_free = has_parts(pattern)

    def matches(self, name: str) -> bool:
        """Whether a file's name fits in any way."""
        return self._whole.fullmatch(self._read(name)) is not None

    def fits(self, name: str) -> Iterator[tuple[Key, str]]:
        """The ways in which a name fits: what must be equal, and the class or ''.

        Wildcards are as long as possible in the first. There are others only where text is free,
        since `a_b_c` may be the class `c` or `b_c`.
        """
        text = self._read(name)
        found = self._whole.fullmatch(text)
        if found:
            groups = found.groupdict()
            class_name = groups.get("class_name", "")
            skipped = self._whole.groupindex.get("class_name", 0)
            yield tuple(g for i, g in enumerate(found.groups(), 1) if i != skipped), class_name
            if self.is_free:
                yield from islice(self._parses(text, 0), 1, None)

    def _parses(self, text: str, place: int) -> Iterator[tuple[Key, str]]:
        """All ways in which the words from a place on fit a text."""
        if place == len(self._words):
            if not text:
                yield (), ""
            return
        word, form = self._words[place], self._forms[place]
        after = self._words[place + 1] if place + 1 < len(self._words) else ""
        for end in range(len(text), -1, -1) if word in _WILDCARDS else (len(word),):
            if after not in _WILDCARDS and not text.startswith(after, end):
                continue
            found = form.fullmatch(text[:end])
            if found is None:
                continue
            for key, class_name in self._parses(text[end:], place + 1):
                if word == "{class}":
                    yield key, text[:end]
                else:
                    yield (*found.groups(), *key), class_name


def _wildcards(pattern: str) -> list[str]:
    """Those that must be equal."""
    return [word for word in _WILDCARD.findall(pattern) if word not in _FREE]


def _agree(option: str, pattern: str, first: str, second: str) -> SetrError:
    return UsageError(
        f"{option} {pattern}: {printable(first)} and {printable(second)} agree in all that * "
        "stands for; give the file ending, or another *"
    )
