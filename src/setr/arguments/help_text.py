"""How the help of a command reads: its description, the names of values, the text of options."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from setr.arguments.options import placeholder


def description(kind: type) -> str:
    """The docstring of a command's options, wrapped to the terminal, with its examples as they are.

    The parser wraps nothing, joins a line that begins with a letter to the one before, and doubles
    empty lines. So all lines but the first are indented, and no line is empty.
    """
    text = inspect.cleandoc(kind.__doc__ or "")
    width = shutil.get_terminal_size().columns
    parts: list[str] = []
    for part in text.split("\n\n"):
        lines = [line.strip() for line in part.splitlines()]
        if all(line.startswith("setr ") for line in lines):
            parts.append("\n".join(f"    {line}" for line in lines))
        else:
            first = "  " if parts else ""
            parts.append(textwrap.fill(
                " ".join(part.split()), width, initial_indent=first, subsequent_indent="  ",
                break_long_words=False, break_on_hyphens=False,
            ))  # fmt: skip
    return "\n".join(parts)


def plain_placeholders() -> Any:
    """While in use, the help says `INT INT` in place of `{None}|{INT INT}`, and the like."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()
    inside: list[PrimitiveTypeInfo] = []

    @registry.primitive_rule
    def plain(info: PrimitiveTypeInfo) -> Any:
        if inside:  # a recursive call: leave it to the parser's own rules
            return None
        inside.append(info)
        try:
            spec = ConstructorRegistry.get_primitive_spec(info)
        finally:
            inside.pop()
        if not isinstance(spec, PrimitiveConstructorSpec):
            return spec
        return replace(spec, metavar=placeholder(info.type))

    return registry


@contextlib.contextmanager
def flowing_help() -> Iterator[None]:
    """While in use, the help of each option is one paragraph, wrapped to the terminal.

    The parser keeps line breaks before indented lines, which all lines of a docstring are.
    """
    import docstring_parser

    module: Any = docstring_parser
    original = module.parse_from_object

    def flowing(source: Any) -> Any:
        found = original(source)
        for option in found.params:
            option.description = option.description and " ".join(option.description.split())
        return found

    module.parse_from_object = flowing
    try:
        yield
    finally:
        module.parse_from_object = original
