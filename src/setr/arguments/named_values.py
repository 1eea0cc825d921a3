"""Settings of an encoder in one option, as NAME=VALUE."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from setr.errors import UsageError

_OTHER_OPTIONS = {
    "drop_path_rate": "model.drop_path",
    "img_size": "model.img_size",
    "in_chans": "the data's bands (`bands` of data.yaml)",
    "merge_tokens": "model.merge_tokens",
    "name": "model.encoder",
    "patch_stride": "model.patch_stride",
    "pos_interp": "model.pos_interp",
    "prefix_tokens": "model.prefix_tokens",
    "pretrained": "model.pretrained",
    "prune_norm": "the decoder",
    "taps": "model.taps",
}
"""Arguments of an encoder that are set elsewhere -> where."""
_CONSTANTS = {"true": "True", "false": "False", "none": "None", "null": "None"}
"""Constants as YAML writes them."""


def encoder_arguments(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Keyword arguments of an encoder from texts such as `reg_tokens=8`.

    Args:
        given: the texts, or None; a value that is no number, True, False, None or tuple of them is
            text.
        option: the option's name, for messages.

    Raises:
        SetrError: a text of another form, a name twice, or one that another option sets.
    """
    found: dict[str, Any] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (sign and value and name.isidentifier()):
            raise UsageError(f"{option} '{text}': give NAME=VALUE, as reg_tokens=8")
        if name in found:
            raise UsageError(f"{option} '{text}': {name} is given twice; give it once")
        if name in _OTHER_OPTIONS:
            raise UsageError(f"{option} '{text}': is set by {_OTHER_OPTIONS[name]}; leave it out")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        value = ast.literal_eval(_CONSTANTS.get(text, text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    plain = value if isinstance(value, tuple) else (value,)
    return value if all(isinstance(v, int | float | str | None) for v in plain) else text
