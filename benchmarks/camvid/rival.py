"""What the rivals share: arguments, timing, label images out, and `result.json` when complete.

The scripts run with the interpreter of another library's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))  # not installed in a rival's
from setr.processes.machine import process_peak

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The scales of the multi-scale test, as ours."""
WARM = 50
"""Steps before the clock starts, as our log's first line; half of them in shorter runs."""


def arguments(description: str, **choices: tuple[str, ...]) -> argparse.Namespace:
    """The command line both scripts have, and one option for each of a script's own choices."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/, labels/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", help="pretrained encoder; random weights without")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short-side", type=int, required=True)
    parser.add_argument("--crop", type=int, nargs=2, required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--multi-scale", action="store_true")
    parser.add_argument("--no-test", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a model of seconds, for checks")
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0])
    given = parser.parse_args()
    given.data, given.out = given.data.resolve(), given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def classes_of(data: Path) -> tuple[list[str], int]:
    """Class names and the id that is not counted, of CamVid or of drawn scenes."""
    described = data / "data.yaml"
    if described.is_file():
        import yaml

        values = yaml.safe_load(described.read_text(encoding="utf-8"))
        return values["classes"], values["ignore"]
    names = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    return names.split(), 11


def images(data: Path, split: str) -> list[Path]:
    """Image files of a split, by name."""
    return sorted((data / "images" / split).iterdir())


class Timer:
    """Times of the ends of steps, and the processor time until the last of them."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ends: list[float] = []
        self.processor = 0.0

    def step(self) -> None:
        """A step has ended."""
        self.ends.append(time.monotonic())
        self.processor = time.process_time()

    def seconds_per_step(self) -> float:
        """Mean over the steps after the first ones."""
        first = min(WARM, max(1, len(self.ends) // 2)) - 1
        count = len(self.ends) - 1 - first
        start = self.ends[first] if count else self.began
        return (self.ends[-1] - start) / max(count, 1)


def save_labels(folder: Path, image: Path, ids: np.ndarray) -> None:
    """Write predicted ids (H, W) as PNG under the image's name."""
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{image.stem}.png"), ids.astype(np.uint8))


def finish(given: argparse.Namespace, version: str, timer: Timer, model: Any) -> None:
    """Write `result.json`: what training took, and on what."""
    cuda = torch.cuda.is_available()
    peak = (torch.cuda.max_memory_allocated() if cuda else process_peak()) / 2**20
    values = {
        "commit": version,
        "torch": torch.__version__,
        "hardware": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "train_seconds": round(timer.ends[-1] - timer.began, 1),
        "processor_seconds": round(timer.processor, 1),
        "seconds_per_step": round(timer.seconds_per_step(), 5),
        "peak_mb": round(peak),
        "parameters": sum(p.numel() for p in model.parameters()),
        "pretrained": given.weights and Path(given.weights).name,
    }
    part = given.out / "result.part"
    part.write_text(json.dumps(values), encoding="utf-8")
    part.replace(given.out / "result.json")
