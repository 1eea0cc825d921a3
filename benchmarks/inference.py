"""Speed and memory from image to mask: ours in every runtime, mmsegmentation beside it.

    python benchmarks/inference.py [--peer-python PEER/bin/python] [--models pup_base mla_base]
        [--rounds 3] [--trained MODEL DATA] [--tiny] [--markdown]

512x512, 150 classes, batch 1. Both sides carry the same random weights (the peer's, converted), so
masks can be compared. Every contender runs in a process of its own, in turn, `--rounds` times, on
the same machine; figures are medians over the rounds, and ratios are taken within a round. The
floor is the fewest operations any form of the model here needs, at the best rate of matrix products
in the row's own precision, over shapes and libraries, measured before the model's rounds; int8 has
none, because no rate is measured.
`--trained` adds `setr bench` of a trained model: agreement and mIoU of every runtime where they
mean something. With a GPU, rows in bf16 and compiled bf16 at batch 1 and 16 follow.

The peer is mmsegmentation 1.2.2 with mmcv-lite in another environment; without it its rows are
left out. Prints a table (`--markdown` for documents) and writes results/inference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from inference_case import NUM_CLASSES, ours, peer, prepare
from inference_tables import markdown
from matrix_rates import matmul_rates

CONTENDERS = (
    "mmseg fp32",
    "eager fp32",
    "eager bf16",
    "onnxruntime fp32",
    "openvino fp32",
    "openvino bf16",
    "openvino int8",
)
GPU_ROWS = ("eager bf16", "compile bf16")
STEPS = {"rates": matmul_rates, "weights": peer, "prepare": prepare, "peer": peer, "ours": ours}


def start(
    python: str, step: str, work: Path, threads: int, script: str = __file__, **job: Any
) -> dict[str, Any]:
    """Run one step of a benchmark script in a fresh process and read its figures."""
    done = subprocess.run(
        [python, script, "--step", json.dumps({"step": step, "work": str(work), **job})],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise SystemExit(f"{step} {job} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_model(name: str, given: argparse.Namespace, contenders: list[str]) -> dict[str, Any]:
    """All contenders on one model, in rounds."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="setr-inference-") as folder:
        work = Path(folder)
        job = {"model": name, "size": given.size, "repeats": given.repeats}
        if "mmseg fp32" in contenders:
            start(given.peer_python, "weights", work, given.threads, **job)
        own = [c for c in contenders if c != "mmseg fp32"]
        about = start(sys.executable, "prepare", work, given.threads, contenders=own, **job)
        rates = start(sys.executable, "rates", work, given.threads, tiny=given.tiny)
        rounds: list[dict[str, dict[str, float]]] = []
        for _ in range(given.rounds):
            figures = {}
            for contender in contenders:
                if contender == "mmseg fp32":
                    figures[contender] = start(
                        given.peer_python, "peer", work, given.threads, **job
                    )
                else:
                    figures[contender] = start(
                        sys.executable, "ours", work, given.threads, contender=contender,
                        device="cpu", batch=1, **job,
                    )  # fmt: skip
                print(f"{name:<12}{contender:<18}{figures[contender]['seconds']:>9.3f} s"
                      f"{figures[contender]['peak_mb']:>8.0f} MB", flush=True)  # fmt: skip
            rounds.append(figures)
        masks = {c: np.load(work / f"{c}.npy") for c in contenders}
    first = contenders[0]

    def median(values: Any) -> float:
        return statistics.median(list(values))

    rows = [
        {
            "contender": c,
            "seconds": median(r[c]["seconds"] for r in rounds),
            "peak_mb": median(r[c]["peak_mb"] for r in rounds),
            "speedup": median(r[first]["seconds"] / r[c]["seconds"] for r in rounds),
            "memory_ratio": median(r[c]["peak_mb"] / r[first]["peak_mb"] for r in rounds),
            "agreement": float((masks[c] == masks[first]).mean()),
        }
        for c in contenders
    ]
    return {"model": name, **about, "matmul_gflops": rates, "reference": first, "rows": rows}


def measure_gpu(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Images per second on a GPU."""
    with tempfile.TemporaryDirectory(prefix="setr-inference-") as folder:
        work = Path(folder)
        job = {"model": name, "size": given.size, "repeats": given.repeats * 10}
        about = start(sys.executable, "prepare", work, given.threads, contenders=[], **job)
        rows = []
        for contender in GPU_ROWS:
            for batch in (1, 16):
                figures = start(
                    sys.executable, "ours", work, given.threads, contender=contender,
                    device="cuda", batch=batch, **job,
                )  # fmt: skip
                speed = batch / figures["seconds"]
                rows.append({"contender": contender, "batch": batch, "images_per_second": speed,
                             "peak_mb": figures["peak_mb"]})  # fmt: skip
                print(
                    f"{name:<12}{contender:<14} batch {batch:<3}{speed:>9.1f} images/s", flush=True
                )
    return {"model": name, **about, "rows": rows}


def bench_trained(
    model: str, data: str, split: str, threads: int, seconds: float
) -> dict[str, Any]:
    """`setr bench` of a trained model on its data."""
    command = [sys.executable, "-m", "setr", "bench", model, "--data", data, "--split", split,
               "--seconds", str(seconds), "--skip", "compile", "--json"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    if done.returncode:
        raise SystemExit(f"setr bench failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter with mmsegmentation 1.2.2")
    parser.add_argument("--models", nargs="+", default=["pup_base", "naive_base", "mla_base"],
                        help="DECODER_SCALE: naive, pup, mla; tiny, base, large")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trained", nargs=2, metavar=("MODEL", "DATA"))
    parser.add_argument("--split", default="test", help="of the trained model's data")
    parser.add_argument("--gpu-only", action="store_true", help="leave the CPU's rows out")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # one step, in this process
    given = parser.parse_args()
    if given.step:
        job = json.loads(given.step)
        print(json.dumps(STEPS[job["step"]](job, Path(job["work"]))))
        return
    if given.tiny:
        given.models, given.size = ["pup_tiny", "mla_tiny"], 64
        given.rounds, given.repeats = 1, 2
    contenders = [c for c in CONTENDERS if c in given.only]
    if not given.peer_python and "mmseg fp32" in contenders:
        contenders.remove("mmseg fp32")
    import torch

    record: dict[str, Any] = {
        "machine": machine(given.threads),
        "settings": {"size": given.size, "classes": NUM_CLASSES, "batch": 1,
                     "rounds": given.rounds, "repeats": given.repeats},
        "models": [] if given.gpu_only
        else [measure_model(name, given, contenders) for name in given.models],
    }  # fmt: skip
    if given.trained:
        seconds = 0.1 if given.tiny else 20.0
        record["trained"] = bench_trained(*given.trained, given.split, given.threads, seconds)
    if torch.cuda.is_available():
        record["gpu"] = [measure_gpu(name, given) for name in given.models]
    print(markdown(record) if given.markdown else json.dumps(record["models"]))
    if not given.tiny:
        given.out.mkdir(parents=True, exist_ok=True)
        name = "inference_gpu.json" if given.gpu_only else "inference.json"
        (given.out / name).write_text(json.dumps(record, indent=1) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    from setr.provenance import commit, hardware

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("torch", "timm", "onnxruntime", "openvino", "nncf")
    return {
        "hardware": hardware(),
        "threads": threads,
        "commit": commit(),
        **{package: of(package) for package in packages},
    }


if __name__ == "__main__":
    main()
