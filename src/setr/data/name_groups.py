"""Groups of images by their names, such as all slices of a patient."""

from __future__ import annotations

from collections.abc import Sequence

from setr.data.name_patterns import fitting_keys
from setr.errors import UsageError
from setr.reading.files import printable


def groups_of(images: Sequence[str], pattern: str) -> dict[str, str]:
    """The group of each image: what the wildcards of a pattern stand for in its name.

    Args:
        images: relative to the folder.
        pattern: as `images/*_{any}`; see `pairs_by_pattern`.

    Raises:
        SetrError: images that do not fit, or a single group (exit code 2).
    """
    keys = fitting_keys(images, pattern)
    others = [image for image in images if image not in keys]
    if others:
        raise UsageError(
            f"--group-by {pattern}: {len(others)} of {len(images)} images do not fit, as "
            f"{printable(others[0])}; * stands for the name of the group, {{any}} for the rest"
        )
    groups = {image: "\n".join(key) for image, key in keys.items()}
    if len(set(groups.values())) < 2:
        raise UsageError(f"--group-by {pattern}: all images are in one group; it takes two or more")
    return groups
