"""The exception for user errors, and the exit codes of the command line.

A `SetrError` has a one-line message that names the value, the rule and the fix. The command line
prints it to stderr and exits with the error's code; any other exception is a bug.

0, ok: everything was done.
1, failed: the command may be correct, but not everything could be done: a broken file, one image of
   many, a full disk, no network, a missing package, a training that diverged.
2, usage: the command must be changed. This is known before work begins, from its arguments and
   settings files, the existence of files, the model's architecture and the machine's devices: a
   value out of range, a model, folder or device that does not exist, an output that already exists.
3, data check failed: the content of a data set is not what the command needs.
130, interrupted by SIGINT, SIGTERM or SIGHUP, after saving what was done.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

OK = 0
FAILED = 1
USAGE = 2
DATA_CHECK_FAILED = 3
INTERRUPTED = 130


class SetrError(ValueError):
    """A problem that the user can fix, described in one line.

    Args:
        message: names the value, the rule it breaks and the fix.
        code: exit code of the command line.
    """

    def __init__(self, message: str, *, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.reported = False  # True if another process of the run prints it


class UsageError(SetrError):
    """A command, setting or argument that must be changed (exit code 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=USAGE)


class DataError(SetrError):
    """A data set whose content is not what the command needs (exit code 3)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=DATA_CHECK_FAILED)


def first_line(error: BaseException) -> str:
    """The message of another library's error, cut to one line; its type if it has none."""
    mark = getattr(error, "problem_mark", None)  # YAML errors begin with the context
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', '')}"[:160]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, if any."""
    return next(iter(difflib.get_close_matches(name, known, 1)), None)


def first_few(values: Sequence[object], most: int) -> str:
    """Values joined with commas; those beyond `most` become one ellipsis."""
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "")


def joined_problems(problems: Sequence[str], most: int = 10) -> str:
    """Problems joined with semicolons; those beyond `most` are only counted."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "; ".join([*problems[:most], *more])


def similar(name: str, known: Iterable[str]) -> str:
    """A hint for a message: known names like one that has hyphens or capitals; `""` if none are."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, 3, cutoff=0.3)
    return f"; nearest: {', '.join(near)}" if near else ""


def check_setting(ok: bool, message: str) -> None:
    """Raise unless a setting is valid.

    Raises:
        UsageError: with the message.
    """
    if not ok:
        raise UsageError(message)


def check_rules(
    settings: object, prefix: str, *rules: tuple[str, Callable[[Any], bool], str]
) -> None:
    """Raise unless settings follow their rules; one that is None is not given.

    Args:
        settings: has the values as attributes.
        prefix: of their names in messages, as `train.`.
        rules: names with blanks between, whether a value is good, and what to give.

    Raises:
        UsageError: with the setting, its value and the rule.
    """
    for names, is_good, rule in rules:
        for name in names.split():
            value = getattr(settings, name)
            shown = f"{value:g}" if isinstance(value, float) else value
            check_setting(value is None or is_good(value), f"{prefix}{name} {shown}: {rule}")
