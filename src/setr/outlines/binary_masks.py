"""Masks of two classes whose values are not exact: soft edges, or saved as JPEG."""

from __future__ import annotations

from pathlib import Path

from setr.data.class_files import names_by_id
from setr.data.found_pairs import FoundPairs
from setr.outlines.drawing import Shape
from setr.outlines.index import AnnotatedFolder, AnnotatedImage
from setr.outlines.mask_files import MaskFile


def binary_masks(root: Path, found: FoundPairs, threshold: int) -> AnnotatedFolder:
    """The brighter areas of the masks as outlines of one class.

    Its name is the second of a file of two class names, else `foreground`.

    Args:
        threshold: grey level from which on pixels belong to the class.
    """
    listed = list(names_by_id(root).values())
    name = listed[1] if len(listed) == 2 else "foreground"
    out = AnnotatedFolder(f"masks with --threshold {threshold}", False, (name,))
    for image, mask in found.pairs:
        shape = Shape(name, (MaskFile(root / mask, threshold),))
        out.images.append(AnnotatedImage(image, (shape,), "", split=found.splits.get(image, "")))
    out.unannotated = found.unpaired
    return out
