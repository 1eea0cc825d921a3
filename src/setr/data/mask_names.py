"""Finds the mask of each image by the names of the files: equal stems, or with suffixes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, product, takewhile

from setr.errors import DataError
from setr.reading.files import composed, stem_of

_SEGMENTS_AI = "_label_ground-truth"
"""In the names of all label files of Segments.ai: instance ids, class ids and colours."""
MASK_SUFFIXES = (
    *("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L", "_segmentation", "_m"),
    f"{_SEGMENTS_AI}_semantic",
)
"""Suffixes of the stems of masks that are in the same folder as their images."""
_IMAGE_SUFFIXES = ("", "_sat", "_image", "_img", "_rgb", "_RGB")
"""Suffixes of the stems of these images."""

_SAMPLE = 20  # masks from which suffixes are collected


def separate_masks(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images and masks of one folder; no masks if no stem has one of `MASK_SUFFIXES`."""
    stems = {stem_of(name) for name in names}
    for own, end in product(_IMAGE_SUFFIXES, MASK_SUFFIXES):
        masks = {stem.removesuffix(own) + end for stem in stems if stem.endswith(own)} & stems
        if masks:
            others = [name for name in names if stem_of(name) not in masks]
            images = [n for n in others if stem_of(n).endswith(own) and _SEGMENTS_AI not in n]
            return images, [name for name in names if stem_of(name) in masks]
    return list(names), []


def masks_by_stem(images: Sequence[str], masks: Iterable[str]) -> dict[str, str]:
    """Mask files by the stem of their image, after removing the suffix that mask stems share.

    The suffix may be the image's file ending: `x.jpg.png` for `x.jpg`. Of several suffixes that fit
    equally many images, the one in `MASK_SUFFIXES` is taken. If nothing fits, a suffix that all
    images share is removed, too: `x_mask.png` for `x_sat.jpg`.

    Raises:
        SetrError: several masks per image and no way to choose (exit code 3).
    """
    stems = [stem_of(name) for name in images]
    by_stem: dict[str, str] = {}
    for name in masks:
        if (first := by_stem.setdefault(stem_of(name), name)) != name:
            raise DataError(f"{first} and {name} are masks with the same stem; remove one of them")
    if any(stem in by_stem for stem in stems):
        return by_stem
    whole = {n: s for n, s in zip(map(composed, images), stems, strict=True) if n in by_stem}
    if whole:
        return {whole.get(mask, mask): name for mask, name in by_stem.items()}
    end, stem_by_bare = _mask_end(stems, by_stem), dict(zip(stems, stems, strict=True))
    if not end and (own := _shared_end(stems)):
        stem_by_bare = {stem.removesuffix(own): stem for stem in stems}
        bare = list(stem_by_bare)
        end = "" if any(stem in by_stem for stem in bare) else _mask_end(bare, by_stem)
    bare_masks = {m.removesuffix(end): name for m, name in by_stem.items() if m.endswith(end)}
    return {stem_by_bare.get(bare, bare): name for bare, name in bare_masks.items()}


def _mask_end(stems: Sequence[str], by_stem: Mapping[str, str]) -> str:
    """The suffix of the masks that fits most stems of images; empty if none fits any."""
    known, sample = set(stems), islice(by_stem, _SAMPLE)
    suffixes = {mask[i:] for mask in sample for i in range(1, len(mask)) if mask[:i] in known}
    matches = {end: sum(stem + end in by_stem for stem in stems) for end in sorted(suffixes)}
    too_long = {  # `10_seg` belongs to image 10, so the suffix is `_seg`, not `0_seg` of image 1
        end
        for end, n in matches.items()
        if any(len(e) < len(end) and end.endswith(e) and m >= n for e, m in matches.items())
    }
    most = max((n for end, n in matches.items() if end not in too_long), default=0)
    equal = [end for end, n in matches.items() if n == most and end not in too_long]
    usual = [end for end in equal if end in MASK_SUFFIXES]
    if len(equal) > 1 and len(usual) != 1:
        stem = next(stem for stem in stems if stem + equal[0] in by_stem)
        shown = " and ".join(by_stem[stem + end] for end in equal if stem + end in by_stem)
        raise DataError(
            f"images have several masks ({stem} has {shown}); keep one for each image, with one "
            "class id per pixel; if each file is the mask of one class, `setr init-data DIR` joins "
            "files of 0 and one other value, also under other names (--images 'images/*' --masks "
            "'masks/*_{class}')"
        )
    return (usual or equal or [""])[0]


def _shared_end(stems: Sequence[str]) -> str:
    """What the names of two images or more have in common after a separator, as `_sat`, or ''."""
    ends = zip(*(reversed(os.path.basename(stem)) for stem in stems), strict=False)
    equal = "".join(letters[0] for letters in takewhile(lambda both: len(set(both)) == 1, ends))
    common = equal[::-1]
    found = re.search(r"[_\-. ].*[a-zA-Z].*", common)
    return found[0] if found and len(stems) > 1 else ""
