"""One command in a process of its own: its output in a file, its time and memory measured.

Processes are forked from a server that has imported the libraries and has never touched a device,
so that starting one costs nothing and no run inherits another's memory.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_PRELOAD = [
    *("setr.cli", "setr.engine", "setr.predictor", "setr.pages.evaluation_page"),
    *("setr.commands.train", "setr.commands.eval", "setr.commands.score"),
]
INTERRUPTED = 130


class Cost(NamedTuple):
    """What a command took: exit code, wall seconds, peak MB (of the GPU if it used one)."""

    code: int
    seconds: float
    peak_mb: float


def _child(arguments: list[str], log: str, cost: str) -> None:
    """Run `setr ARGUMENTS` in this process, out of reach of the terminal's interrupt."""
    os.setpgrp()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["setr", *arguments]
    from setr.cli import main

    code = main(arguments)
    sys.stdout.flush()
    Path(cost).write_text(json.dumps(peak_memory()), encoding="utf-8")
    raise SystemExit(code)


def peak_memory() -> float:
    """Largest memory of this process in MB: of the GPU if it was used, else of the process."""
    import torch

    from setr.processes.machine import process_peak

    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return process_peak() / 2**20


class Clock:
    """When to stop: at the deadline, or when the user interrupts."""

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.interrupted = False

    @property
    def over(self) -> bool:
        """Whether no further command should start."""
        return self.interrupted or (self.end is not None and time.monotonic() > self.end)


def run_setr(arguments: list[str], folder: Path, clock: Clock) -> Cost:
    """Run a command of setr; output goes to FOLDER/VERB.log.

    At the deadline it is interrupted, which a training answers by saving its state.
    """
    verb = arguments[0]
    folder.mkdir(parents=True, exist_ok=True)
    figure = folder / f".{verb}-cost.json"
    figure.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    log = folder / f"{verb}.log"
    process = context.Process(target=_child, args=(arguments, str(log), str(figure)))
    began = time.monotonic()
    process.start()
    code = _wait(process.join, lambda: process.exitcode, process.pid or 0, clock)
    seconds = time.monotonic() - began
    peak = float(json.loads(figure.read_text())) if figure.is_file() else 0.0
    figure.unlink(missing_ok=True)
    return Cost(code, seconds, peak)


def run_foreign(command: list[str], folder: Path, clock: Clock) -> Cost:
    """Run another program; output goes to FOLDER/train.log, memory is for it to report."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    import setr

    path = [str(Path(setr.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    with (folder / "train.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )

        def wait(seconds: float) -> None:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return

        code = _wait(wait, lambda: process.returncode, process.pid, clock)
    return Cost(code, time.monotonic() - began, 0.0)


def _wait(
    wait: Callable[[float], Any], code: Callable[[], int | None], pid: int, clock: Clock
) -> int:
    """Wait for a process; interrupt it once when the clock is over."""
    told = False
    while True:
        wait(0.2)
        ended = code()
        if ended is not None:
            return INTERRUPTED if told and ended != 0 else ended
        if clock.over and not told:
            told = True
            os.kill(pid, signal.SIGINT)


def last_lines(path: Path, count: int = 8) -> str:
    """The end of a log, for an error message."""
    if not path.is_file():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
