"""Weak and strong scaling over the processes of one machine, and the share of communication.

    python benchmarks/scaling.py --model setr_naive_small --size 224 --batch 4 --processes 1 2

Each setting runs in processes of its own, with drawn numbers in place of images. A step is timed
twice: as it is, and without exchanging gradients (the batch norms still exchange statistics); the
difference is what the exchange costs after overlap. Strong scaling keeps the global batch, which
every number of processes must divide, weak scaling the batch per process. Every process computes
with one thread, so that a process is a unit of hardware on a CPU as it is on GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from setr import distributed
from setr.distributed import add_up, device, joined, world
from setr.inference import normalize
from setr.losses import count_weight, segmentation_loss
from setr.model import create_model
from setr.training.parallel import Parallel

CLASSES = 19


def run_steps(given: argparse.Namespace, batch: int) -> dict[str, float]:
    """Median seconds per step with and without exchange, in one of the processes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_model(given.model, num_classes=CLASSES, img_size=given.size).to(device())
    parallel = Parallel(model, given.sharding)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(distributed.rank())
    shape = (batch // world(), given.size, given.size)
    images = torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(CLASSES, shape, dtype=torch.uint8, generator=generator)
    images, masks = images.to(device()), masks.to(device())

    def step(exchange: bool) -> float:
        distributed.any_of(False)  # start together
        began = time.perf_counter()
        normalizer = add_up(count_weight(masks))
        with parallel.micro_batch(last=exchange):
            x = normalize(images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
            output = parallel.call(x, with_aux=True)
            losses = segmentation_loss(output, masks, normalizer=normalizer)
            parallel.scale_loss(losses["loss"]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        distributed.any_of(False)  # the slowest counts
        return time.perf_counter() - began

    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(given.warmup):
        step(True)
    for _ in range(given.steps):
        for exchange in (True, False):  # interleaved, so that a busy machine slows both
            times[exchange].append(step(exchange))
    return {
        "seconds": statistics.median(times[True]),
        "seconds_without_exchange": statistics.median(times[False]),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def measure(processes: int, batch: int) -> dict[str, float]:
    """One setting in processes of its own; what rank 0 reports."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, __file__, *sys.argv[1:], "--as-process", str(batch)]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a process failed: {outputs}")
    found: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="setr_naive_small")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4, help="images of one process")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sharding", choices=("none", "full"), default="none")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--as-process", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_process:
        with joined():
            print(json.dumps(run_steps(given, given.as_process)))
        return
    for number in given.processes:
        if given.batch % number:
            parser.error(
                f"--batch {given.batch}: strong scaling shares it among {number} processes; "
                f"give a multiple of {number}"
            )
    rows = []
    print(
        "| scaling | processes | global batch | s/step | images/s | efficiency | exchange "
        "| gradient MB |\n|---|---|---|---|---|---|---|---|"
    )
    for kind in ("strong", "weak"):
        alone = 0.0
        for number in given.processes:
            batch = given.batch * number if kind == "weak" else given.batch
            found = measure(number, batch)
            rate = batch / found["seconds"] / number
            alone = alone or rate
            exchange = max(0.0, 1 - found["seconds_without_exchange"] / found["seconds"])
            row = {"scaling": kind, "processes": number, "batch": batch, **found}
            rows.append({**row, "efficiency": rate / alone, "exchange": exchange})
            print(
                f"| {kind} | {number} | {batch} | {found['seconds']:.3f} | {rate * number:.2f} "
                f"| {rate / alone:.0%} | {exchange if number > 1 else 0:.0%} "
                f"| {found['parameters'] * 4 / 1e6 if number > 1 else 0:.0f} |",
                flush=True,
            )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
