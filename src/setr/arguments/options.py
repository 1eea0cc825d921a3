"""The options of a command, from the fields of its dataclass.

`--optim.lr` is field `lr` of the nested dataclass `optim`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Option:
    """One option or positional argument.

    Attributes:
        dotted: path of the field, such as `optim.lr`.
        flags: option strings, the main one first; empty for positional arguments.
        negative: the flag that sets a switch to false; empty if it has none.
        hint: the field's type without None.
        optional: the value may be None.
        required: the field has no default.
        placeholder: of the value in the help.
    """

    dotted: str
    flags: tuple[str, ...]
    negative: str
    hint: Any
    optional: bool
    required: bool
    placeholder: str

    @property
    def name(self) -> str:
        """The dotted name as written on the command line."""
        return self.dotted.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it is a boolean option, which takes no value."""
        return self.hint is bool and bool(self.flags)

    @property
    def usage(self) -> str:
        """How it is written in a usage line."""
        if not self.flags:
            return self.placeholder
        plain = self.hint in (str, Path)  # its name says more than its type
        value = self.name.rpartition(".")[2].upper() if plain else self.placeholder
        return f"{self.flags[-1]} {value}"


def options_of(kind: Any) -> list[Option]:
    """The options and positional arguments of a dataclass, including nested ones."""
    return list(_options(kind))


def _options(kind: Any, prefix: str = "") -> Iterator[Option]:
    import tyro

    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        hint, *extras = _unwrapped(hints[item.name])
        metadata: dict[str, Any] = {}
        for extra in extras:
            for key in ("name", "metavar", "aliases"):
                value = getattr(extra, key, None)
                metadata |= {} if value is None else {key: value}
        if dataclasses.is_dataclass(hint):
            name = metadata.get("name", item.name)
            yield from _options(hint, f"{prefix}{name}." if name else prefix)
            continue
        optional = hint != _without_none(hint)
        hint = _without_none(hint)
        dotted = prefix + item.name
        flag = f"--{dotted.replace('_', '-')}"
        positional = tyro.conf.Positional in extras
        head, dot, last = flag[2:].rpartition(".")
        missing = dataclasses.MISSING
        yield Option(
            dotted,
            () if positional else (flag, *metadata.get("aliases", ())),
            "" if tyro.conf.FlagCreatePairsOff in extras else f"--{head}{dot}no-{last}",
            hint,
            optional,
            item.default is missing and item.default_factory is missing,
            metadata.get("metavar") or (last.upper() if positional else placeholder(hint)),
        )


def _unwrapped(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(member for member in get_args(hint) if member is not type(None))


def placeholder(hint: Any) -> str:
    """Placeholder of a value in the help: `INT`, `INT INT`, `STR…`, `{a,b}`."""
    hint = _without_none(hint)
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        if others == [Ellipsis]:
            return placeholder(first) + "…"
        return " ".join(map(placeholder, (first, *others)))
    return str(getattr(hint, "__name__", hint)).upper()
