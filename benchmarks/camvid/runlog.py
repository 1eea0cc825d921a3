"""What a training's logs say about its cost, also where it was interrupted and continued."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """What a run logged; a run that was resumed has every step once."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def logged_peak_mb(folder: Path) -> float:
    """Largest memory in MB that any session of a run logged."""
    peaks = (line.get("peak_memory_gb", 0.0) for line in log_lines(folder))
    return max(peaks, default=0.0) * 1e9 / 2**20


def seconds_per_step(folder: Path) -> float:
    """Seconds per step over all sessions of a run.

    A line of the log has the average since its session began, without evaluations. The difference
    of a session's first and last line leaves out its first steps, in which libraries choose kernels
    and workers start. `train.log` tells after which steps sessions began.
    """
    text = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
    starts = [0, *map(int, re.findall(r"^continuing after step (\d+)$", text, re.MULTILINE))]
    lines = [line for line in log_lines(folder) if "seconds_per_step" in line]
    seconds, steps = 0.0, 0
    for i, start in enumerate(starts):
        stop = min(starts[i + 1 :], default=lines[-1]["step"])  # later sessions replaced the rest
        timed = [
            (line["step"] - start, (line["step"] - start) * line["seconds_per_step"])
            for line in lines
            if start < line["step"] <= stop
        ]
        if timed:
            (first, began), (last, ended) = timed[0], timed[-1]
            whole = first == last
            seconds += ended if whole else ended - began
            steps += last if whole else last - first
    return round(seconds / steps, 5)
