"""JSON and YAML of files by strangers: whatever is wrong with the text is one kind of error.

Python's readers also raise `RecursionError` for deep nesting, and `ValueError` for numbers of more
than 4300 digits and for dates that do not exist.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from setr.errors import first_line

BROKEN = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
"""What reading a file that does not follow its format, and taking values out of it, raises.

`SetrError` is among them, as a `ValueError`: where one may be raised, catch it first.
"""
MAX_ALIASED = 1_000_000
"""Values that the aliases of a YAML file may stand for; each alias can repeat all before it."""


def json_of(text: str | bytes) -> Any:
    """The values of a JSON text.

    Raises:
        json.JSONDecodeError: not JSON, nested too deeply, or with a number that is too long.
        UnicodeDecodeError: bytes that are no text.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(first_line(error), "", 0) from None


def table_in(path: Path) -> dict[str, Any]:
    """The table in a JSON file; an empty one if the file is missing, damaged or holds no table."""
    try:
        values = json_of(path.read_text(encoding="utf-8"))
    except (OSError, *BROKEN):
        return {}
    return values if isinstance(values, dict) else {}


def fault_of(error: BaseException) -> str:
    """What is wrong with a file, from one of `BROKEN` that reading its values raised."""
    if isinstance(error, KeyError):
        return f"{str(error.args[0]) if error.args else ''!r:.60} is missing"
    if isinstance(error, TypeError | AttributeError):
        return "a value is of another kind: a list, text, number or table in place of another"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no text in {error.encoding.upper()}"
    return first_line(error) if error.args else "a value is out of range"


class PlainLoader(yaml.SafeLoader):
    """YAML of plain values, of bounded size: a few lines of aliases could stand for terabytes."""

    def get_single_node(self) -> yaml.Node | None:
        """As in the base class, after counting what the aliases stand for."""
        node = super().get_single_node()
        counts: dict[int, int] = {}
        if node is not None and _count(node, counts) > MAX_ALIASED + len(counts):
            raise yaml.YAMLError(f"its aliases stand for more than {MAX_ALIASED:,} values")
        return node


def yaml_of(text: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: not YAML, nested too deeply, too large by its aliases, or with a number or
            date that does not exist.
    """
    try:
        return yaml.load(text, loader)  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:
        raise yaml.YAMLError(first_line(error)) from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Values that a node stands for, with those of its aliases each time; by `id` in `counts`."""
    if id(node) not in counts:
        counts[id(node)] = 1  # a node inside itself
        parts: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
    return counts[id(node)]
