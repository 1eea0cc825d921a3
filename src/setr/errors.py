"""The one exception for user errors, and the exit codes of the command line.

A `SetrError` carries one line that names the value, the rule and the fix. The command line prints
that line to stderr and exits with the error's code; only other exceptions are bugs.

0, ok: all that was asked for was done.
1, failed: the command may be right, but not all could be done: a broken file, one image of many, a
   full disk, no network, a package that is not installed, a training that diverged.
2, usage: the command must be written in another way. What is wrong could be told before work began,
   from its words, the settings files it names, the names in the file system, the model's
   architecture and the machine's devices: a value out of its range, a model, folder or device that
   is not there, an output that is in the way.
3, data check failed: the content of a data set is not what the command needs.
130, interrupted by SIGINT or SIGTERM, after what is done was saved.
"""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
DATA_CHECK_FAILED = 3
INTERRUPTED = 130


class SetrError(ValueError):
    """A problem the user can mend, described in one line.

    Args:
        message: names the value, the rule it breaks and the fix.
        code: the exit status the command line ends with.
    """

    def __init__(self, message: str, *, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.reported = False  # another process of the run prints it


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for one line; its kind if nothing."""
    mark = getattr(error, "problem_mark", None)  # YAML's begin with what was being read, not why
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', '')}"[:160]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def check_setting(ok: bool, message: str) -> None:
    """Refuse a setting that is not as it must be.

    Raises:
        SetrError: the message, with exit code 2.
    """
    if not ok:
        raise SetrError(message, code=USAGE)
