"""Speed and memory of evaluation: sliding windows, the metric, a huge image.

    python benchmarks/evaluation.py [--peer-python PEER/bin/python] [--tiny] [--only slide huge]

Each case runs in a process of its own, so that its peak memory is its own; the peer (mmsegmentation
1.2.2 with mmcv-lite, in another environment) runs between ours on the same machine. Prints a table
and writes JSON beside the results of the other benchmarks.

- slide: 1024x2048, window 768, stride 512, ViT-tiny (192 wide, 12 blocks) with PUP (256 channels),
  19 classes, random weights; seconds per image, best of the repeats.
- metric-uint8, metric-int64: one update with 512x512 pixels and 150 classes in blocks of 16 pixels,
  in one thread, best of 20 times the repeats. Both sides get the same tensors: uint8 is what our
  pipeline hands to its metric, int64 what mmsegmentation's hands to its own.
- huge: 8000x6000, 150 classes, window 512, stride 341, argmax only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers import load_mmseg, peak_mb, setr_config

CASES = ("slide", "metric-uint8", "metric-int64", "huge")


def measure(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Best and median seconds, and the process's peak memory in MB."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": min(seconds),
        "median": sorted(seconds)[len(seconds) // 2],
        "peak_mb": round(peak_mb()),
    }


def images(tiny: bool) -> dict[str, Any]:
    """Sizes of the cases; small ones check that everything runs."""
    if tiny:
        return {"slide": (128, 256), "window": 96, "stride": 64, "huge": (300, 400), "metric": 64}
    return {
        "slide": (1024, 2048),
        "window": 768,
        "stride": 512,
        "huge": (6000, 8000),
        "metric": 512,
    }


def measure_metric(
    case: str, side: int, update: Callable[[torch.Tensor, torch.Tensor], object], repeats: int
) -> dict[str, float]:
    """An update of either side's metric: the same masks, and the same number of repeats."""
    torch.set_num_threads(1)
    dtype = torch.uint8 if case == "metric-uint8" else torch.int64
    truth = torch.randint(0, 150, (side // 16, side // 16), dtype=dtype)
    truth = truth.repeat_interleave(16, 0).repeat_interleave(16, 1)
    prediction = truth.roll(5, 1)
    truth[::9] = 255
    return measure(lambda: update(prediction, truth), repeats * 20)


def our_model(num_classes: int, img_size: int) -> Any:
    from setr import create_model

    return create_model(
        "setr_pup_tiny", num_classes=num_classes, img_size=img_size, aux=False
    ).eval()


def ours(case: str, precision: str, sizes: dict[str, Any], repeats: int) -> dict[str, float]:
    """One of our cases in this process."""
    from setr.inference import NormalizedImages, predict_mask
    from setr.layers.precision import autocast_dtype
    from setr.metrics import ConfusionMatrix
    from setr.protocols import Protocol

    torch.manual_seed(0)
    if case.startswith("metric"):
        return measure_metric(case, sizes["metric"], ConfusionMatrix(150).update, repeats)
    if case == "huge":
        window, stride, K = (512, 341, 150) if sizes["window"] == 768 else (96, 64, 150)
        model, (H, W) = our_model(K, window), sizes["huge"]
        protocol = Protocol(window=(window, window), stride=(stride, stride))
        repeats = 0
    else:
        model, (H, W) = our_model(19, sizes["window"]), sizes["slide"]
        protocol = Protocol(window=(sizes["window"],) * 2, stride=(sizes["stride"],) * 2)
    pixels = torch.randint(0, 256, (1, H, W, 3), dtype=torch.uint8)
    x = NormalizedImages(pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    dtype = autocast_dtype(precision, torch.device("cpu"))  # type: ignore[arg-type]

    @torch.inference_mode()
    def work() -> object:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            return predict_mask(model, x, protocol, with_confidence=False)

    if repeats:
        return measure(work, repeats)
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "median": seconds, "peak_mb": round(peak_mb())}


def peer(case: str, sizes: dict[str, Any], repeats: int) -> dict[str, float]:
    """The same case by mmsegmentation, run with its own interpreter."""
    load_mmseg()
    from mmengine.config import Config
    from mmseg.evaluation.metrics import IoUMetric
    from mmseg.registry import MODELS

    torch.manual_seed(0)
    if case.startswith("metric"):
        update = partial(IoUMetric.intersect_and_union, num_classes=150, ignore_index=255)
        return measure_metric(case, sizes["metric"], update, repeats)
    window = sizes["window"]
    stride = sizes["stride"]
    slide = {"mode": "slide", "crop_size": (window, window), "stride": (stride, stride)}
    config = setr_config("pup", "tiny", window, 19, test_cfg=slide)
    model = MODELS.build(Config(config)).eval()
    H, W = sizes["slide"]
    x = torch.randn(1, 3, H, W)
    meta = [{"ori_shape": (H, W), "img_shape": (H, W), "pad_shape": (H, W)}]

    @torch.no_grad()
    def work() -> object:
        return model.slide_inference(x, meta).argmax(dim=1)

    return measure(work, repeats)


def run_case(python: str, arguments: list[str]) -> dict[str, float]:
    """Run one case in a fresh process and read its figures."""
    done = subprocess.run(
        [python, __file__, *arguments], capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter with mmsegmentation 1.2.2")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # one case, in this process
    given = parser.parse_args()
    sizes = images(given.tiny)
    if given.case:
        case, who = given.case
        figures = (
            peer(case, sizes, given.repeats)
            if who == "mmseg"
            else ours(case, who, sizes, given.repeats)
        )
        print(json.dumps(figures))
        return
    rows = []
    for case in given.only:
        runs = [("setr fp32", "fp32"), ("setr default", "auto")]
        if case.startswith("metric"):  # integers: there is no precision
            runs = [("setr", "fp32")]
        if given.peer_python and case != "huge":
            runs.insert(1, ("mmseg", "mmseg"))
        for name, who in runs:
            python = given.peer_python if who == "mmseg" else sys.executable
            arguments = ["--case", case, who, "--repeats", str(given.repeats)]
            figures = run_case(python, arguments + ["--tiny"] * given.tiny)
            rows.append({"case": case, "who": name, **figures})
            print(f"{case:<14}{name:<14}{figures['seconds'] * 1000:>12.2f} ms"
                  f"{figures['peak_mb']:>8} MB", flush=True)  # fmt: skip
    if given.tiny:
        return
    given.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "repeats": given.repeats, "rows": rows}
    (given.out / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from setr.provenance import commit, hardware

    return {
        "hardware": hardware(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


if __name__ == "__main__":
    main()
