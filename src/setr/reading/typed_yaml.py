"""Converting dataclasses to YAML and back, strict about keys and types."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_type_hints

import yaml

from setr.arguments.typed import typed
from setr.errors import UsageError, first_line, nearest
from setr.reading.parsed import yaml_of

T = TypeVar("T")


def dump(settings: Any) -> str:
    """A dataclass, including nested ones, as YAML; `parse` restores an equal object."""
    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False)


def parse(kind: type[T], text: str, source: str) -> T:
    """A dataclass from YAML; a missing key takes its default.

    Args:
        source: its origin, for messages.

    Raises:
        SetrError: not YAML, an unknown key (the nearest is named), or a value of the wrong type.
    """
    try:
        values = yaml_of(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not valid YAML ({first_line(error)})") from None
    return build(kind, values, source)


def build(kind: type[T], values: Any, source: str, prefix: str = "") -> T:
    """A dataclass from a mapping; see `parse`.

    Args:
        source: its origin, for messages.
        prefix: of its keys in messages, with a trailing dot.

    Raises:
        SetrError: as `parse`.
    """
    if not isinstance(values, dict):
        where = prefix.removesuffix(".") or "the file"
        raise UsageError(f"{source}: {where} must contain keys and values")
    hints = get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            near = nearest(str(key), hints)
            hint = f"; did you mean '{prefix}{near}'?" if near else ""
            raise UsageError(f"{source}: unknown key '{prefix}{key}'{hint}")
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = build(hints[key], value, source, f"{prefix}{key}.")
        else:
            arguments[key] = typed(hints[key], value, f"{source}: {prefix}{key}")
    return kind(**arguments)
