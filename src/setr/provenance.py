"""Provenance of results: command, commit, hardware and versions, stored with the metrics."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from setr import __version__


def provenance(seed: int, device: torch.device | None = None) -> dict[str, Any]:
    """Provenance of this process, JSON-serialisable."""
    return {
        "command": command(),
        "commit": commit(),
        "version": __version__,
        "torch": torch.__version__,
        "hardware": hardware(device),
        "seed": seed,
    }


def command() -> str:
    """The command line of this process, with `setr` in place of the path of the program."""
    name = Path(sys.argv[0]).name
    is_setr = name in ("setr", "__main__.py")
    return shlex.join(["setr" if is_setr else name, *sys.argv[1:]])


def commit() -> str | None:
    """The commit of this package, with `+` for uncommitted changes; None outside a checkout.

    A virtual environment may lie in a repository of something else, which does not track it.
    """
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def hardware(device: torch.device | None = None) -> str:
    """Name of the GPUs or the processor; by default of the GPUs if there are any."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name()
        return f"{count} x {name}" if count > 1 else name
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
