"""Training steps per second when several processes share a GPU; run by `gpu_check.py`.

By default a GPU gives each process the whole of itself in turns. NVIDIA's Multi-Process Service
(`nvidia-cuda-mps-control -d`) lets kernels of several processes run at the same time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from gpu_bench import Bench, Figures

SECONDS, TOGETHER = 3.0, 4
"""How long steps are counted, and of how many processes."""
PIPE = "CUDA_MPS_PIPE_DIRECTORY"


def shared(bench: Bench) -> Figures:
    """Steps of SETR-MLA per second, all processes together, by number of processes."""
    if not bench.cuda:
        return {}
    groups = {
        name: [_start(environment) for _ in range(TOGETHER)]
        for name, environment in _ways(bench.folder).items()
    }
    found: Figures = {}
    for worker in (worker for workers in groups.values() for worker in workers):
        _line(worker)  # its step is recorded
    for name, workers in groups.items():
        for count in (1, TOGETHER):
            for worker in workers[:count]:
                _tell(worker, "go")
            steps = [float(_line(worker)) for worker in workers[:count]]
            found[f"{name}, {count}"] = round(sum(steps) / SECONDS, 1)
    for worker in (worker for workers in groups.values() for worker in workers):
        _tell(worker, "end")
        worker.wait()
    return found


def _ways(folder: Path) -> dict[str, Mapping[str, str]]:
    """Environments of the workers: in turns, and through MPS where it is running."""
    found: dict[str, Mapping[str, str]] = {"in turns": {PIPE: str(folder / "none")}}
    if Path(os.environ.get(PIPE, "/tmp/nvidia-mps"), "control").exists():
        found["MPS"] = {}
    return found


def _start(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True,
                            env={**os.environ, **environment})  # fmt: skip


def _tell(worker: subprocess.Popen[str], word: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(word + "\n")
    worker.stdin.flush()


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker ended with code {worker.wait()}")
    return line


def main() -> None:
    """A worker: counts steps for some seconds whenever it is told to."""
    from gpu_speed import stepper

    bench = Bench(torch.device("cuda"), tiny=False, folder=Path())
    work, _ = stepper(bench, graph=True)
    for _ in range(5):
        work()
    bench.wait()
    print("ready", flush=True)
    while sys.stdin.readline().strip() == "go":
        began, steps = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            work()
            bench.wait()
            steps += 1
        print(steps, flush=True)


if __name__ == "__main__":
    main()
