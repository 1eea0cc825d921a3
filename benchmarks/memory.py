"""The estimate of a training step's memory beside the measured peak.

    python benchmarks/memory.py --out benchmarks/results/memory.json
    python benchmarks/memory.py --models setr_mla_nano --size 64 --batch 2 --classes 9  # quick

Every line trains three steps in a process of its own, on drawn noise with the asked number of
classes, and reads the peak from the run's log (on CPUs the process's largest resident size, on
GPUs what torch allocated); the estimate comes from `setr train … --estimate` in another process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from setr.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from setr.images import encode_png
from setr.writing import write_bytes

MODELS = [f"setr_{d}_{s}" for s in ("base", "large") for d in ("naive", "pup", "mla")]


def noise(root: Path, size: int, classes: int, count: int) -> Path:
    """A data set of noisy images, as many as a batch, whose masks hold every class."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 1)):
        for number in range(images):
            image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            mask = rng.integers(0, classes, (size, size), dtype=np.uint8)
            for kind, array in (("images", image), ("labels", mask)):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, encode_png(array))
    names = ", ".join(f"c{i}" for i in range(classes))
    (root / "data.yaml").write_text(f"path: .\nclasses: [{names}]\n")
    return root


def settings(given: argparse.Namespace, model: str, checkpointing: bool, root: Path) -> Config:
    return Config(
        recipe=model,
        out=str(root.parent / "run"),
        model=ModelConfig(name=model, img_size=given.size),
        data=DataConfig(root=str(root), crop_size=(given.size,) * 2, scale_range=(1, 1), workers=0),
        optim=OptimConfig(name=given.optimizer, lr=1e-4),
        train=TrainConfig(
            steps=3,
            batch_size=given.batch,
            precision=given.precision,
            grad_checkpointing=checkpointing,
            log_every=1,
            save_every=10,
            samples=0,
        ),
    )


def call(arguments: list[str], threads: int) -> str:
    """Run setr; the output, or the last line of what went wrong."""
    result = subprocess.run(
        [sys.executable, "-m", "setr", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if result.returncode:
        sys.exit(result.stderr.strip().splitlines()[-1])
    return result.stdout


def compare(given: argparse.Namespace, model: str, checkpointing: bool) -> dict:
    """Estimate and measured peak of one setting, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        root = noise(Path(folder) / "data", given.size, given.classes, given.batch)
        config = settings(given, model, checkpointing, root)
        path = Path(folder) / "config.yaml"
        path.write_text(config.to_yaml())
        values = json.loads(call(["train", str(path), "--estimate", "--json"], given.threads))
        call(["train", str(path)], given.threads)
        lines = (Path(config.out) / "log.jsonl").read_text().splitlines()
        measured = [json.loads(line) for line in lines]
    peak = 1e9 * next(line["peak_memory_gb"] for line in measured if line["step"] == 3)
    parts = ("process", "parameters", "gradients", "optimizer", "activations", "logits", "total")
    return {
        "model": model,
        "checkpointing": checkpointing,
        "precision": values["precision"],
        "device": values["device"],
        **{name: values[name] for name in parts},
        "measured": peak,
        "error_percent": 100 * (values["total"] / peak - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--optimizer", default="sgd", choices=["sgd", "adamw"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args()
    print(
        f"batch {given.batch}, {given.size}x{given.size}, {given.classes} classes, "
        f"{given.optimizer}; GB\n\n"
        "| model | checkpointing | activations | estimate | measured | difference |\n"
        "|---|---|---|---|---|---|"
    )
    rows = []
    for model in given.models:
        for checkpointing in (False, True):
            row = compare(given, model, checkpointing)
            rows.append(row)
            print(
                f"| {model} | {'on' if checkpointing else 'off'} | {row['activations'] / 1e9:.2f} "
                f"| {row['total'] / 1e9:.2f} | {row['measured'] / 1e9:.2f} "
                f"| {row['error_percent']:+.1f} % |",
                flush=True,
            )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
