"""Weights that do not fit a model: what is refused, and the messages."""

from __future__ import annotations

import re

from torch import Tensor

from setr.errors import UsageError
from setr.weight_files.stem import POSITIONS

MIN_MATCH = 0.95
"""Share of the encoder's tensors that a checkpoint must have."""


def require_encoder(
    source: str,
    mismatched: list[str],
    missing: list[str],
    own: dict[str, Tensor],
    given: dict[str, Tensor],
    share: float,
) -> None:
    """Raise `SetrError` if too few tensors match, any has another shape, or the stem differs."""
    wrong = [n for n in mismatched if n.startswith("encoder.")]
    stem = [n for n in missing if re.match(r"encoder\..*(patch_embed|pos_embed|\.conv1\.)", n)]
    homeless = POSITIONS in given and POSITIONS not in own
    if share >= MIN_MATCH and not (wrong or stem or homeless):
        return
    if homeless:
        detail = f"the encoder has no place for {POSITIONS}"
    elif wrong:
        n = wrong[0]
        detail = f"{n} is {tuple(given[n].shape)}, the model's is {tuple(own[n].shape)}"
    else:
        detail = f"missing: {', '.join((stem + missing)[:3])}"
    raise UsageError(
        f"{source}: fits {share:.0%} of the encoder ({detail}); choose the encoder that these "
        "weights belong to (--model.encoder), or load what fits: partial=True, "
        "`setr convert --partial`"
    )


_BY_CLASS = {
    "decoder.classifier.weight": (0, 0),
    "decoder.class_tokens": (1, 0),
    "decoder.class_head.weight": (0, 1),
}
"""Head tensors by class: the last axis that counts them (those before have size 1), and how many
rows are not classes ("no object")."""


def head_message(
    source: str,
    num_classes: int,
    names: list[str],
    own: dict[str, Tensor],
    given: dict[str, Tensor],
) -> str:
    """Why the heads of a checkpoint do not fit: for other classes, or of another decoder.

    Args:
        source: name of the file.
        num_classes: the model's.
        names: the model's head tensors that have no fitting one.
        own: the model's tensors.
        given: the checkpoint's.
    """
    differing = [
        len(given[name].flatten(0, axis)) - no_object
        for name, (axis, no_object) in _BY_CLASS.items()
        if name in names and name in given and name in own
    ]
    if differing and differing[0] != num_classes:
        what = f"is for {differing[0]} classes, the model has {num_classes}"
    else:
        what = f"has another decoder ({names[0]} does not fit)"
    return (
        f"{source}: {what}; to initialise {len(names)} head tensors anew "
        f"({', '.join(names[:2])}, …): new_head=True, `setr convert --new-head`"
    )
