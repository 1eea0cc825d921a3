"""Ends the training of settings that fall behind others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setr.trackers import Tracker, read_lines

LEAST = 3
"""Other runs that a median needs."""


class MedianStop(Tracker):
    """Ends a run whose best mIoU so far is below the median of others at the same step.

    The rule of Golovin et al., "Google Vizier" (KDD 2017), section 3.2, with the others' best in
    place of their running average. It needs evaluations of three others at that step or later.

    Args:
        step: the run continues after this step.
        runs: folders of all runs of the sweep, also of those that have not begun.
    """

    def __init__(self, out: Path, step: int, runs: Sequence[Path]) -> None:
        super().__init__(out, step)
        self.others = [run for run in runs if run != out]
        before = {at: miou for at, miou in _tests(out) if at <= step}
        self.best = max(before.values(), default=0.0)
        if step in before:  # a run that was stopped when it had ended ends again
            self._compare(step)

    def line(self, line: Mapping[str, Any]) -> None:
        """Compare after an evaluation."""
        if "val" not in line:
            return
        self.best = max(self.best, line["val"]["miou"] or 0.0)
        self._compare(line["step"])

    def _compare(self, step: int) -> None:
        reached = [_best_until(run, step) for run in self.others]
        known = [miou for miou in reached if miou is not None]
        if len(known) >= LEAST and self.best < (median := statistics.median(known)):
            self.ended = (
                f"mIoU {100 * self.best:.2f} is below {100 * median:.2f}, the median of "
                f"{len(known)} runs at this step"
            )


def _best_until(run: Path, step: int) -> float | None:
    """Best mIoU of a run up to a step, None if it has not been evaluated at that step or later."""
    tests = _tests(run)
    if not tests or max(at for at, _ in tests) < step:
        return None
    return max((miou for at, miou in tests if at <= step), default=None)


def _tests(run: Path) -> list[tuple[int, float]]:
    """Step and mIoU of a run's evaluations so far."""
    return [
        (line["step"], line["val"]["miou"] or 0.0)
        for line in read_lines(run / "log.jsonl")
        if "val" in line
    ]
