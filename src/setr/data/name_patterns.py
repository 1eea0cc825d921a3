"""Pairs of images and masks by two patterns for their names, in which `*` stands for equal text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from setr.data.pairing import is_file
from setr.errors import USAGE, SetrError
from setr.reading.files import composed, printable, stem_of

_WILDCARDS = {r"**/": "((?:.+/)?)", "**": "(.*)", "*": "([^/]*)"}
"""Regular expression of each wildcard: any folders or none, any text, text without a slash."""


def pairs_by_pattern(
    files: Sequence[str], images: str, masks: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Images and masks whose names agree in what the wildcards stand for.

    Args:
        files: paths of images and masks, relative to one folder.
        images: pattern of the images. `*` stands for any text within a name, `**` also for
            folders. A pattern without a file ending matches any.
        masks: pattern of the masks, with as many wildcards.

    Returns:
        The pairs, and the images without a mask. A file that matches both patterns is a mask.

    Raises:
        SetrError: another number of wildcards, or several files that agree (exit code 2).
    """
    counts = [len(_wildcards(pattern)) for pattern in (images, masks)]
    if counts[0] != counts[1] or not counts[0]:
        raise SetrError(
            f"--images {images} --masks {masks}: give both the same number of *, one or more; what "
            "they stand for must be equal in an image and its mask",
            code=USAGE,
        )
    mask_of = _by_key(files, masks, "--masks")
    taken = set(mask_of.values())
    image_of = _by_key([name for name in files if name not in taken], images, "--images")
    pairs = [(image, mask_of[key]) for key, image in image_of.items() if key in mask_of]
    return pairs, [image for key, image in image_of.items() if key not in mask_of]


def require_relative(root: Path, option: str, pattern: str) -> None:
    """Refuse a pattern that leads out of the folder."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or not pattern:
        raise SetrError(f"{option} {pattern or repr('')}: give a path below {root}", code=USAGE)


def _wildcards(pattern: str) -> list[str]:
    return re.findall(r"\*\*/|\*\*|\*", pattern)


def _by_key(files: Sequence[str], pattern: str, option: str) -> dict[tuple[str, ...], str]:
    """Files that match a pattern, by what its wildcards stand for in their names."""
    pattern = composed(pattern)
    words = re.split(r"(\*\*/|\*\*|\*)", pattern)
    expression = re.compile("".join(_WILDCARDS.get(word) or re.escape(word) for word in words))
    read = composed if is_file(pattern) else stem_of
    found: dict[tuple[str, ...], str] = {}
    for name in files:
        if match := expression.fullmatch(read(name)):
            first = found.setdefault(match.groups(), name)
            if first != name:
                raise SetrError(
                    f"{option} {pattern}: {printable(first)} and {printable(name)} agree in all "
                    "that * stands for; give the file ending, or another *",
                    code=USAGE,
                )
    return found
