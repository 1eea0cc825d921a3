"""The options of a command line, from the fields of a verb's dataclass.

`--optim.lr` is named from field `lr` of field `optim`; its last part is what comes after the dot.
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
    """One field: `flags` as they are typed, the option's name first; a word by its place has none.

    `hint` is the field's type without None.
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
        """Dotted, as on the command line."""
        return self.dotted.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Takes no value."""
        return self.hint is bool and bool(self.flags)

    @property
    def usage(self) -> str:
        """How it is written in a usage line."""
        if not self.flags:
            return self.placeholder
        plain = self.hint in (str, Path)  # its name says more
        value = self.name.rpartition(".")[2].upper() if plain else self.placeholder
        return f"{self.flags[-1]} {value}"


def options_of(kind: Any) -> list[Option]:
    """The options of a dataclass and of those inside it; words by their place have no flags."""
    return list(_options(kind))


def _options(kind: Any, prefix: str = "") -> Iterator[Option]:
    import tyro

    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        hint, *extras = _unwrapped(hints[item.name])
        marks: dict[str, Any] = {}
        for extra in extras:
            for key in ("name", "metavar", "aliases"):
                value = getattr(extra, key, None)
                marks |= {} if value is None else {key: value}
        if dataclasses.is_dataclass(hint):
            name = marks.get("name", item.name)
            yield from _options(hint, f"{prefix}{name}." if name else prefix)
            continue
        optional = hint != _without_none(hint)
        hint = _without_none(hint)
        dotted = prefix + item.name
        flag = f"--{dotted.replace('_', '-')}"
        by_place = tyro.conf.Positional in extras
        head, dot, last = flag[2:].rpartition(".")
        needed = dataclasses.MISSING
        yield Option(
            dotted,
            () if by_place else (flag, *marks.get("aliases", ())),
            f"--{head}{dot}no-{last}",
            hint,
            optional,
            item.default is needed and item.default_factory is needed,
            marks.get("metavar") or (last.upper() if by_place else placeholder(hint)),
        )


def _unwrapped(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(member for member in get_args(hint) if member is not type(None))


def placeholder(hint: Any) -> str:
    """What stands for a value in the help: `INT`, `INT INT`, `STR…`, `{a,b}`."""
    hint = _without_none(hint)
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        if others == [Ellipsis]:
            return placeholder(first) + "…"
        return " ".join(map(placeholder, (first, *others)))
    return str(getattr(hint, "__name__", hint)).upper()
