"""The one exception for user errors, and the exit codes of the command line.

A `SetrError` carries one line that names the value, the rule and the fix. The command line prints
that line to stderr and exits with the error's code; only other exceptions are bugs.
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
