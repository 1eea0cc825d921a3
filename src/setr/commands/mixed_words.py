"""Commands that take options of `setr train` beside their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from setr.arguments.options import options_of
from setr.arguments.usage import assigned, flags_of, unknown
from setr.commands.parsing import parse, typed_options
from setr.commands.train import Arguments as Training
from setr.errors import UsageError

T = TypeVar("T")

_SETTING = re.compile(r"--(model|data|optim|train|distill|eval)\.")
"""Start of an option of `setr train`."""


def split_words(arguments: list[str], verb: str, first: str) -> tuple[list[str], list[str]]:
    """Split the words into a command's own and the settings of the training, each with its values.

    Args:
        first: placeholder of what must come first.

    Raises:
        UsageError: settings come first.
    """
    own: list[str] = []
    settings: list[str] = []
    words = own
    for word in arguments:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+(e-?\d+)?", word):
            words = settings if _SETTING.match(word) else own
        words.append(word)
    if settings and (not arguments[0] or arguments[0].startswith("-")):
        begin = arguments[0]
        what = "data" if first == "DATA" else "recipe"
        raise UsageError(f"{verb} needs the {what} before {begin}: setr {verb} {first} {begin} …")
    return own, settings


def parse_mixed(
    kind: type[T], arguments: list[str], verb: str, first: str, elsewhere: Mapping[str, str]
) -> tuple[T, list[str]]:
    """Parse a command's own words.

    Args:
        first: placeholder of what must come first.
        elsewhere: options of `setr train` that have another form here, with what to do.

    Returns:
        Its arguments, and the settings of the training.

    Raises:
        UsageError: a wrong word, or one of `elsewhere`.
    """
    own, settings = split_words(arguments, verb, first)
    for option, advice in elsewhere.items():
        if option in typed_options(arguments):
            raise UsageError(f"{option}: {advice}")
    _refuse_unknown(own, kind, verb)
    given: T = parse(kind, own, verb)
    return given, settings


def _refuse_unknown(words: list[str], kind: Any, verb: str) -> None:
    """Refuse words that are no option of a command, with the option of `setr train` that is meant.

    Args:
        words: its own, without settings.
    """
    if {"-h", "--help"} & set(words):
        return
    settings = [option for option in options_of(Training) if "." in option.dotted]
    options = [*options_of(kind), *settings]
    message = unknown(words, flags_of(options_of(kind)), options, verb)
    others = (assigned(word, options, verb) for word in words if not Path(word).exists())
    if message := message or next(filter(None, others), None):
        raise UsageError(message)
