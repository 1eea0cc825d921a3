"""Words of a command line -> the options of a command, and checks of their values.

A command's options are the fields of a dataclass; what is wrong with them is one line.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from setr.arguments.help_text import description, flowing_help, plain_placeholders
from setr.arguments.usage import emptied, missing, named_as_typed, problem
from setr.errors import SetrError, UsageError
from setr.writing import require_writable


def parse(kind: Any, args: list[str], verb: str, **options: Any) -> Any:
    """Parse arguments into a dataclass; errors become one line, exit code 2."""
    import tyro

    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught), plain_placeholders(), flowing_help():
            about = description(kind)
            given = tyro.cli(kind, args=args, prog=f"setr {verb}", description=about, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        cause = _refusal(stop)
        message = (
            named_as_typed(kind, str(cause), args)
            if cause
            else problem(kind, args, verb) or _unboxed(caught.getvalue())
        )
        raise _of_the_command_line(message) from None
    lacking = missing(kind, given, verb) or emptied(kind, args, verb)
    if lacking:
        raise _of_the_command_line(lacking)
    return given


def typed_options(words: Sequence[str]) -> set[str]:
    """The options among the words of a command line, without values and with hyphens."""
    return {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("-")}


def _of_the_command_line(message: str) -> SetrError:
    """An error that all processes of a run raise; only the first one prints it."""
    error = UsageError(message)
    if {"RANK", "SLURM_PROCID"} & os.environ.keys():
        from setr.processes.launch import is_first  # which loads torch

        with contextlib.suppress(SetrError):  # half an environment
            error.reported = not is_first()
    return error


def _refusal(stop: BaseException) -> SetrError | None:
    """Our own exception behind the parser's: a dataclass refused its values."""
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, SetrError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _unboxed(text: str) -> str:
    """What the parser printed, without its frame."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def require_unused(out: Path) -> None:
    """Refuse a folder for results (-o) that is a file, holds something or cannot be written.

    Hidden files are nothing: a process that was killed may have left some.
    """
    if out.exists() and not (out.is_dir() and all(p.name[0] == "." for p in out.iterdir())):
        raise UsageError(f"{out}: exists; choose another folder with -o")
    require_writable(out, "-o")


def require_at_least(given: Any, least: int, *names: str) -> None:
    """Refuse options with a number below `least`, or with none; None is an option not given."""
    for name in names:
        value = getattr(given, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if value is not None and min(numbers, default=least - 1) < least:
            words = " ".join([f"--{name.replace('_', '-')}", *map(str, numbers)])
            rule = "0 or more" if least == 0 else f"at least {least}"
            raise UsageError(f"{words}: give {rule}")


def require_within(given: Any, least: float, most: float, *names: str) -> None:
    """Refuse options outside a range; nan is in none."""
    for name in names:
        value = getattr(given, name)
        if not least <= value <= most:
            option = f"--{name.replace('_', '-')} {value}"
            raise UsageError(f"{option}: give {least:g} to {most:,.0f}")


def as_typed(given: Any) -> dict[str, list[str]]:
    """The options that differ from their defaults, by field, as words of a command line."""
    found = {}
    for item in fields(given):
        value, name = getattr(given, item.name), item.name.replace("_", "-")
        if item.default in (MISSING, value):
            continue
        if isinstance(value, bool):
            found[item.name] = [f"--{name}" if value else f"--no-{name}"]
        else:
            values = value if isinstance(value, tuple) else (value,)
            found[item.name] = [f"--{name}", *map(str, values)]
    return found


def require_default(given: Any, rule: str, *names: str) -> None:
    """Refuse options that would have no effect; the rule gives reason and fix."""
    words = as_typed(given)
    for name in names:
        if name in words:
            raise UsageError(f"{' '.join(words[name])}: {rule}")


def require_file(path: Path) -> None:
    """Refuse a file that is not there, or a folder, before a model is opened for it."""
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give a file")
