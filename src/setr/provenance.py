"""Where figures come from: command, commit, hardware and versions, stored beside every metric."""

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
    """What produced the figures of this process, as plain values for JSON."""
    return {
        "command": command(),
        "commit": commit(),
        "version": __version__,
        "torch": torch.__version__,
        "hardware": hardware(device),
        "seed": seed,
    }


def command() -> str:
    """The command line of this process, with `setr` for however it was called."""
    name = Path(sys.argv[0]).name
    called = name in ("setr", "__main__.py")
    return shlex.join(["setr" if called else name, *sys.argv[1:]])


def commit() -> str | None:
    """The commit this package runs from, with `+` if files differ; None outside a checkout."""
    here = Path(__file__).parent
    try:
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
    """What a device is called, by default the best: the accelerators, or the processor."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}" if count > 1 else (
            torch.cuda.get_device_name()
        )  # fmt: skip
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
