"""One row of `setr bench`: a model in one runtime, timed in a process of its own.

Started by `bench.py` as `python -m setr.exporting.bench_row`, with its job as JSON on stdin; prints
its figures as JSON. What is timed is the way from a normalised image to its mask, at one size.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import numpy as np
import torch

from setr.arguments.choices import Precision
from setr.data import scenes
from setr.datasets import open_dataset
from setr.evaluation import evaluate_split
from setr.inference import predict_mask
from setr.loading import load
from setr.predictor import Predictor
from setr.processes.machine import peak_bytes
from setr.protocols import Protocol
from setr.scores.scored_images import ScoredImage

MIN_RUNS = 5
LONGEST = 50.0
"""Seconds after which slow runs end, unless more were asked for; the first comes before."""
NUM_SCENES = 4
"""Drawn images for the agreement, where no data set is given."""
SMALLEST_SCENE = 32
"""Side in pixels of those for a smaller size, for which none can be drawn."""


def run_row(job: dict[str, Any]) -> dict[str, Any]:
    """Time one row.

    Args:
        job: `source` (model or exported file), `runtime`, `precision`, `device`, `size`, `batches`,
            `seconds`, `data`, `split`, `count`, `masks` (file for this row's masks) and
            `reference` (the file of the first row).

    Returns:
        Per batch `images_per_second`, `p50_ms`, `p95_ms` (of a whole batch) and `peak_mb` (10^6
        bytes); `agreement` with the reference, 0 to 1, and `miou` where labels are given.
    """
    exported = job["runtime"] not in ("eager", "compile")
    precision: Precision = "auto" if exported else job["precision"]
    predictor = load(job["source"], device=job["device"], precision=precision)
    if job["runtime"] == "compile":
        network = predictor.network
        network.coarse = torch.compile(network.coarse)  # type: ignore[method-assign]
    figures: dict[str, Any] = {"batches": {}}
    for batch in job["batches"]:
        figures["batches"][str(batch)] = time_batch(
            predictor, (batch, len(predictor.info.mean), *job["size"]), job["seconds"]
        )
    masks, figures["miou"] = _masks(predictor, job)
    np.savez_compressed(job["masks"], *masks)
    with np.load(job["reference"]) as stored:
        same = [(stored[f"arr_{i}"] == mask).mean() for i, mask in enumerate(masks)]
    figures["agreement"] = float(np.mean(same))
    return figures


def time_batch(
    predictor: Predictor, shape: tuple[int, int, int, int], seconds: float
) -> dict[str, float]:
    """Time masks of one batch size: at least five runs, and as many as fill `seconds`.

    Fewer, and one for warming up, where runs are so slow that these would take `LONGEST`.
    """
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(predictor.device)
    times: list[float] = []
    whole, end = Protocol(), math.inf
    with predictor.computing():
        for run in range(10_000):
            began = time.perf_counter()
            if run == 1:
                end = began + max(LONGEST, seconds)
            mask, _ = predict_mask(predictor.passes, images, whole, with_confidence=False)
            mask.cpu()
            now = time.perf_counter()
            if run > 2 or now > end:  # warm-up: compiling, CUDA graphs
                times.append(now - began)
            if now > end or (len(times) >= MIN_RUNS and sum(times) >= seconds):
                break
    p50, p95 = np.percentile(times, (50, 95)) * 1000
    return {
        "images_per_second": shape[0] * len(times) / sum(times),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "peak_mb": peak_bytes(predictor.device) / 1e6,
    }


def _masks(predictor: Predictor, job: dict[str, Any]) -> tuple[list[np.ndarray], float | None]:
    """Masks of the images that all rows are compared on, and their mIoU if there are labels."""
    masks: list[np.ndarray] = []
    if job["data"] is None:
        side = max(SMALLEST_SCENE, min(job["size"]))
        drawn = (scenes.draw("bench", i, size=side)[0] for i in range(NUM_SCENES))
        channels = np.arange(len(predictor.info.mean)) % 3  # RGB, repeated for more bands
        return [predictor.predict(image[..., channels]).mask for image in drawn], None

    def keep(tested: ScoredImage) -> None:
        masks.append(tested.prediction)

    exported = job["runtime"] not in ("eager", "compile")
    figures = evaluate_split(
        predictor.model,
        predictor.info,
        open_dataset(job["data"], job["split"], predictor.info.labels, predictor.info.bands),
        precision="fp32" if exported else job["precision"],
        workers=0,
        detailed=False,
        count=job["count"],
        on_image=keep,
    )
    return masks, figures["miou"]


if __name__ == "__main__":
    print(json.dumps(run_row(json.load(sys.stdin))))
