"""The folder of a training run.

A model directory in Hub layout (the best weights) with `config.yaml`, the logs of `trackers.py`,
`metrics.json`, and `last/`, the states to resume from. Only rank 0 writes, except for the shards of
states. A failed write, as on a full disk, causes a warning and does not end the run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from setr.checkpoint import State, newest_state, remove_parts, remove_states, save_state, states
from setr.config import Config
from setr.distributed import any_of, on_first, say, together
from setr.errors import SetrError, UsageError
from setr.processes.launch import restarted
from setr.processes.lock import Lock
from setr.trackers import Builder, Tracker, open_trackers, require
from setr.writing import require_writable, write_errors, write_text

LAST = "last"
_SETTINGS, _FIGURES = "config.yaml", "metrics.json"
_MODEL = ("model.safetensors", "config.json", "README.md")
_EXTRAS = ("trace.json", "report.html")  # of the profiler, of `setr demo`
_TEST_FILES = ("metrics.json", "review.json", "images.csv", "groups.csv", "report.html")
"""Files that `setr eval` writes to eval-SPLIT/, and `setr review` to review-SPLIT/."""


class RunFolder:
    """The files of one run.

    Args:
        resume: continue from its newest state.
        overwrite: replace the run in it.
        trackers: names of trackers besides the built-in ones.
        own_trackers: builders of further trackers.

    Attributes:
        resumed_by: the command that continues the run.

    Raises:
        SetrError: the folder is not empty, and neither `resume` nor `overwrite` is set; there is no
            state to resume from; another process uses the folder; it is not writable; a tracker is
            not installed.
    """

    def __init__(
        self,
        out: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        trackers: Sequence[str] = (),
        own_trackers: Sequence[Builder] = (),
    ) -> None:
        on_first(lambda: require(trackers))
        self.out, self.last, self.lock = out, out / LAST, Lock(out)
        self.tracker_names, self.own_trackers = trackers, own_trackers
        self.resumed_by = f"setr train {shlex.quote(str(out))} --resume"
        self.trackers = list[Tracker]()
        again = any_of(restarted())  # by the launcher, with the original command
        if resume and overwrite:
            problem = "--resume continues a run and --overwrite replaces it: give one of the two"
            raise together(UsageError(problem))
        self.new = not (resume or overwrite or again)
        if self.new:
            on_first(lambda: _require_free(out))
        elif overwrite and not again:
            on_first(lambda: _require_own(out))
        on_first(lambda: require_writable(out, "--out"))
        self.state: State | None = None
        if resume or again:
            self.state = newest_state(self.last)
        if resume and not again and self.state is None:
            problem = f"{self.last}: no training state to resume from; start without --resume"
            raise together(UsageError(problem))
        if not self.new:  # a new folder is created only after all checks
            on_first(lambda: self.lock.take() if out.is_dir() else None)

    def open(self, config: Config) -> None:
        """Create the folder, or remove what a resumed or replaced run must not keep."""
        on_first(lambda: self._open(config))

    def _open(self, config: Config) -> None:
        with write_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            if self.new:  # another run may have used it during the data check
                _require_free(self.out)
            remove_parts(self.last)
            for part in self.out.glob(".*.part"):
                part.unlink()
            old = [_FIGURES]  # belongs to a finished run and its settings
            if self.state is None:
                remove_states(self.last)
                old += [*_MODEL, *_EXTRAS]
                self._remove_tests()
            for name in old:
                (self.out / name).unlink(missing_ok=True)
            # written first, so that an unfinished folder is recognised as a run
            write_text(self.out / _SETTINGS, config.to_yaml())
            state = self.state
            step, tested = (state.step, state.values["tested"]) if state else (0, 0)
            self.trackers = open_trackers(
                self.out, self.tracker_names, step, self.own_trackers, tested
            )

    def _remove_tests(self) -> None:
        """Remove what `setr eval` and `setr review` found with a model that has been replaced."""
        for folder in (*self.out.glob("eval-*/"), *self.out.glob("review-*/")):
            for name in _TEST_FILES:
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it contains other files
                folder.rmdir()

    def log(self, line: Mapping[str, Any]) -> None:
        """Pass the values of a step to all trackers."""
        for tracker in self.trackers:
            self._attempt("log line", partial(tracker.line, line))

    def ended(self) -> str:
        """Why a tracker of rank 0 requests the end of the training; empty if none does."""
        return on_first(lambda: next((t.ended for t in self.trackers if t.ended), ""))

    def picture(self, step: int, picture: np.ndarray | None) -> None:
        """Pass a picture of predictions to all trackers, unless it is None."""
        if picture is None:
            return
        for tracker in self.trackers:
            self._attempt("picture", partial(tracker.picture, step, picture))

    def close(self) -> None:
        """Close the trackers and release the folder."""
        for tracker in self.trackers:
            self._attempt("log", tracker.close)
        self.lock.release()

    def save(
        self, step: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor], *, keep: int
    ) -> bool:
        """Save a training state; False, with a warning, if it cannot be written."""
        problem = save_state(self.last, step, values, tensors, keep=keep)
        if problem:
            before = "the one before stays" if states(self.last) else "there is none before it"
            say(
                f"warning: {self.last}: state of step {step} not saved ({problem}); {before}, "
                "training goes on"
            )
        return not problem

    def attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Run `action`, which writes, on rank 0; False, with a warning, if it fails.

        Called by all processes, which get the same result.
        """
        return on_first(lambda: self._attempt(what, action))

    def replace_model(self, what: str, save: Callable[..., None]) -> bool:
        """Save a new model, as `attempt` does, and remove test results of the previous one.

        Args:
            what: is saved, for the warning.
            save: takes `before`, as `save_pretrained`.
        """
        return self.attempt(what, partial(save, before=self._remove_tests))

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except (OSError, SetrError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            say(f"warning: {self.out}: {what} not written ({reason}); training goes on")
            return False
        return True


def _require_own(out: Path) -> None:
    """Check that --overwrite would not replace a model that does not belong to a run.

    Raises:
        SetrError: there are files of such a model.
    """
    if (out / _SETTINGS).exists() or (out / LAST).exists():
        return
    theirs = [name for name in (*_MODEL, _FIGURES) if (out / name).exists()]
    if theirs:
        raise UsageError(
            f"{out}: not a run folder, but holds {', '.join(theirs)}, which a run would "
            "replace; choose another --out, or move them away"
        )


def _require_free(out: Path) -> None:
    """Check that the folder is empty or does not exist.

    Raises:
        SetrError: it contains a run or other files, or cannot be read.
    """
    try:
        found = os.listdir(out)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(
            f"{out}: not a folder for a run ({error.strerror}); choose another --out"
        ) from None
    if _SETTINGS in found or LAST in found:
        resumable = states(out / LAST)  # else it ended before its first state
        ways = "add --resume to continue it, --overwrite" if resumable else "add --overwrite"
        raise UsageError(f"{out}: this run exists; {ways} to replace it, or choose another --out")
    # a new volume contains lost+found
    other = sorted(name for name in found if name[0] != "." and name != "lost+found")
    if other:
        more = f" and {len(other) - 1} more" if other[1:] else ""
        raise UsageError(
            f"{out}: not a run folder, but holds {other[0]}{more}; choose another --out, move "
            "them away, or add --overwrite to write the run into it anyway"
        )
