"""Values checked against the types of settings and arguments, and converted to them.

Values of Python and YAML become exactly the type that is named: a list or an array a tuple, NumPy's
numbers Python's, a path text, a whole number a float where the type is one.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from setr.errors import UsageError, nearest

P = ParamSpec("P")
T = TypeVar("T")

_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    os.PathLike: "a path",
}


def check_fields(settings: Any, prefix: str = "") -> None:
    """Check and convert all fields of a frozen dataclass; the first thing its `__post_init__` does.

    Args:
        settings: the object under construction.
        prefix: of its fields' names in messages, with a trailing dot.

    Raises:
        SetrError: a value of another type.
    """
    for name, hint in _hints(settings.__class__).items():
        value = typed(hint, getattr(settings, name), f"{prefix}{name}")
        object.__setattr__(settings, name, value)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function check and convert its arguments by their types, those after `**` excepted.

    A wrong argument is then a `SetrError` that names it, not an error from deep inside.
    """
    signature = inspect.signature(function)
    collected = {
        name
        for name, p in signature.parameters.items()
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        hints = _hints(function)
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # whose own message names the function
        for name, value in given.arguments.items():
            if name in hints and name not in collected:
                given.arguments[name] = typed(hints[name], value, name)
        return function(*given.args, **given.kwargs)

    return call


def require_known(function: str, given: Iterable[str], known: type) -> None:
    """Refuse keywords that a function collects and that none of its options has, before it works.

    Args:
        known: a `TypedDict` of the options.

    Raises:
        TypeError: names the keyword, and the option that was probably meant.
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near}?" if near else f"give {', '.join(names)}"
            raise TypeError(f"{function}() has no option '{name}'; {hint}")


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    return get_type_hints(of)


def typed(hint: Any, value: Any, where: str) -> Any:
    """A value checked against and converted to a type.

    Args:
        hint: int, float, str, bool, a `Literal`, a tuple or `Sequence` of these, a class, `Any`, or
            a union of them, also with None.
        value: the value.
        where: what it belongs to; the message begins with it.

    Raises:
        SetrError: another type.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds:
        try:
            return _converted(kind, value)
        except TypeError:
            continue
    shown = value if isinstance(value, str) else plain(value)
    shown = repr(list(shown) if isinstance(shown, tuple) else shown)
    shown = f"a {type(value).__name__}" if "\n" in shown else shown[:100]
    wanted = " or ".join(dict.fromkeys(described(*members(kind)) for kind in kinds))
    raise UsageError(f"{where}: {shown}: give {wanted}")


def _converted(hint: Any, value: Any) -> Any:
    kind = get_origin(hint) or hint
    if kind is Any:
        return value
    if kind in (int, float, str, bool, tuple, Sequence, Literal):
        value = plain(value)
    if kind is float:
        value = _as_float(value)
    elif kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind in (tuple, Sequence) and isinstance(value, tuple):
        kinds, many = members(hint)
        kinds = kinds * len(value) if many else kinds
        if len(kinds) == len(value):
            return tuple(map(_converted, kinds, value))
    elif kind is Literal:
        if value in get_args(hint):
            return value
    elif type(value) is kind or (
        kind not in (int, float, bool, tuple, Sequence) and isinstance(value, kind)
    ):
        return value
    raise TypeError


def plain(value: Any) -> Any:
    """A value without the types of NumPy and torch; lists become tuples."""
    if hasattr(value, "tolist"):  # arrays, tensors, and NumPy's numbers
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def _as_float(value: Any) -> Any:
    """An int, or a finite number as text (YAML reads `1e-3` so), as float; others unchanged."""
    if type(value) not in (int, str):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return value
    return number if math.isfinite(number) else value


def members(hint: Any) -> tuple[tuple[Any, ...], bool]:
    """Types of the words of a value, and whether any number of words is allowed."""
    if get_origin(hint) not in (tuple, Sequence):
        return (hint,), False
    kinds = get_args(hint)
    return (kinds[:1], True) if len(kinds) == 1 or kinds[-1] is Ellipsis else (kinds, False)


def described(kinds: tuple[Any, ...], many: bool) -> str:
    """Description of a value with words of these types, for messages."""
    if get_origin(kinds[0]) is Literal:
        return f"one of {', '.join(map(str, get_args(kinds[0])))}"
    if get_origin(kinds[0]) is tuple:
        return f"tuples of {described(*members(kinds[0]))}"
    kind = get_origin(kinds[0]) or kinds[0]
    name = _NAMES.get(kind, f"a {inspect.formatannotation(kind)}")
    if len(kinds) == 1 and not many:
        return name
    if many and name == "text":
        return "a list of texts"
    number = "" if many else {2: "two ", 3: "three "}.get(len(kinds), f"{len(kinds)} ")
    return f"{number}{name.removeprefix('a ')}" + ("" if name == "text" else "s")
