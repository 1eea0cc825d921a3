"""Weights that do not fit a model: what is refused, and the messages."""

from __future__ import annotations

import re

from torch import Tensor

from setr.errors import SetrError, UsageError
from setr.weight_files.form import as_option, changes_blocks, other_bands, shown_arguments, unplaced
from setr.weight_files.stem import PATCHES, POSITIONS

MIN_MATCH = 0.95
"""Share of the encoder's tensors that a checkpoint must have."""
_STEM = r"encoder\..*(patch_embed|pos_embed|reg_token|norm_pre|\.conv1\.)"
"""Names of tensors without which all others are worth nothing."""


def require_encoder(
    source: str,
    mismatched: list[str],
    missing: list[str],
    own: dict[str, Tensor],
    given: dict[str, Tensor],
    share: float,
    *,
    has_form: bool,
) -> None:
    """Raise `SetrError` unless the tensors of the encoder fit.

    They do not if too few match, any has another shape, the stem differs, or the file has tensors
    without which the blocks would compute something else.

    Args:
        source: name of the file.
        mismatched: names of tensors of another shape.
        missing: names of the encoder's tensors that the file lacks.
        own: the model's tensors.
        given: the file's, under the model's names.
        share: of the encoder's tensors that match.
        has_form: whether `shown_arguments` are those of the encoder's class.
    """
    wrong = [n for n in mismatched if n.startswith("encoder.")]
    stem = [n for n in missing if re.match(_STEM, n)]
    positions = [POSITIONS] if POSITIONS in given and POSITIONS not in own else []
    homeless = positions or unplaced(given, own, changes_blocks)
    if share >= MIN_MATCH and not (wrong or stem or homeless):
        return
    bands = other_bands(given[PATCHES], own[PATCHES]) if PATCHES in wrong else ""
    if wrong and not positions:
        n = wrong[0]
        detail = f"{n} is {tuple(given[n].shape)}, the model's is {tuple(own[n].shape)}"
    elif homeless:
        detail = f"the encoder has no place for {homeless[0]}"
    else:
        detail = f"missing: {', '.join((stem + missing)[:3])}"
    arguments = shown_arguments(given, own) if has_form else {}
    fix = "choose the encoder that these weights belong to (--model.encoder)"
    if PATCHES in own and PATCHES not in given:
        fix = "its patches are embedded in a way of their own or elsewhere, so no encoder here fits"
    elif bands and not arguments:
        fix = bands
    elif arguments:
        fix = f"choose the encoder that these weights belong to, or add {as_option(arguments)}"
        fix += " (? as its authors state)" if "?" in arguments.values() else ""
    raise UsageError(
        f"{source}: fits {share:.0%} of the encoder ({detail}); {fix}, or load what fits: "
        "partial=True, `setr convert --partial`"
    )


_AROUND = r"encoder\.vit\.(norm|fc_norm|head\w*|pre_logits|mask_token)(\.|$)|aux_heads\."
"""Names of tensors that no prediction of a whole model needs."""


def require_used(
    source: str, given: dict[str, Tensor], own: dict[str, Tensor], unknown: list[str]
) -> None:
    """Raise `SetrError` if a model of other code computes with tensors that have no place here.

    Blocks behind the last one that is read, and zeros, change nothing.

    Args:
        source: name of the file.
        given: its tensors, under the model's names.
        own: the model's tensors.
        unknown: names in the file without a counterpart that the model of other code needs.
    """
    homeless = unknown + unplaced(given, own, lambda name: not re.match(_AROUND, name))
    if homeless:
        raise SetrError(
            f"{source}: {homeless[0]} has no place in the architecture its other tensors describe, "
            "so the model would compute something else; its form is not supported"
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
