"""Load on `setr serve`: throughput against the bare model, latency, memory, a restart under load.

    python benchmarks/serve.py MODEL --images FOLDER [--clients 32] [--seconds 60]
    python benchmarks/serve.py MODEL --images FOLDER --only memory --seconds 600
    python benchmarks/serve.py MODEL --images FOLDER --only restart

The server is a process of its own, the clients are another (this one: one thread per client with
one kept connection, standard library only), and the bare model runs in a third while no server
does, on the same images in batches of one size. Images come from FOLDER at three sizes each.

- bare: images per second of `Predictor.predict_batch` over the decoded images, batch as served.
- load: images per second of all clients together, p50/p95/p99 of their latencies, batch sizes, in
  `--rounds` with a server each. The bare model is measured before the first round and after every
  one; a round's share is of the mean of its two neighbours, because the machine's pace changes.
  What is counted are the answers of `--seconds`, after `--ramp` seconds in which the queue fills,
  from one answer to another: they come in batches, which edges of a window would cut. Every answer,
  these included, is compared with the bare model's mask of its own image. One that differs on more
  than 0.1 % of the pixels is wrong; an answer is counted as mixed up where another image of that
  size is nearer.
- memory: resident size of the server every 5 s; the slope is fitted over the second half.
- restart: SIGTERM under load, start again on the same port. Clients repeat what had no answer.
  Counts answers lost (an answer cut off) and requests repeated (no byte of an answer).

Prints a table and writes JSON beside the results of the other benchmarks.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from clients import Clients, Server

SIZES = ((480, 360), (320, 240), (400, 400))  # width, height


def prepare(folder: Path, count: int) -> list[tuple[bytes, tuple[int, int]]]:
    """JPEG files of `count` images at each of the sizes, and (H, W)."""
    from PIL import Image

    from setr.images import read_image
    from setr.reading.files import walk_images

    paths = [folder / name for name in walk_images(folder)[:count]]
    if not paths:
        raise SystemExit(f"{folder}: no images")
    cases = []
    for path in paths:
        image = Image.fromarray(read_image(path))
        for size in SIZES:
            buffer = io.BytesIO()
            image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=92)
            cases.append((buffer.getvalue(), (size[1], size[0])))
    return cases


def single_masks(model: str, cases: list[Any], out: Path) -> None:
    """The model's masks of single runs, as `.npz`."""
    from setr.images import read_image
    from setr.loading import load

    predictor = load(model)
    np.savez(out, *[predictor.predict(read_image(data)).mask for data, _ in cases])


def bare_rate(model: str, cases: list[Any], batch: int, seconds: float) -> float:
    """Images per second of the model's own batches on decoded images, all of them equally often."""
    from setr.images import read_image
    from setr.loading import load

    predictor = load(model)
    images = [read_image(data) for data, _ in cases]
    groups = [
        same[start : start + batch]
        for size in sorted({size for _, size in cases})
        for same in [[i for i, case in zip(images, cases, strict=True) if case[1] == size]]
        for start in range(0, len(same), batch)
    ]
    for group in {same[0].shape: same for same in groups}.values():
        predictor.predict_batch(group)  # each size once, which a server has seen before the count
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for group in groups:
            predictor.predict_batch(group)
            done += len(group)
    return done / (time.perf_counter() - began)


def measure_load(server: Server, clients: Clients, seconds: float, ramp: float) -> dict[str, Any]:
    """Throughput and latency."""
    clients.run(ramp + seconds)
    figures = clients.figures(ramp, ramp + seconds)
    batches = server.metric("setr_batch_size_count")
    figures["mean_batch"] = round(server.metric("setr_batch_size_sum") / max(1.0, batches), 2)
    figures["resident_mb"] = round(server.resident_mb())
    return figures


def measure_memory(server: Server, clients: Clients, seconds: float) -> dict[str, Any]:
    """Resident memory over time."""
    samples: list[tuple[float, float]] = []

    def sample() -> None:
        began = time.perf_counter()
        while (now := time.perf_counter() - began) < seconds:
            samples.append((round(now, 1), round(server.resident_mb(), 1)))
            time.sleep(min(5.0, seconds / 10))

    clients.run(seconds, sample)
    later = samples[len(samples) // 2 :]
    slope = float(np.polyfit(*np.array(later).T, 1)[0]) if len(later) > 1 else 0.0
    return {
        "first_mb": samples[0][1],
        "half_mb": later[0][1],
        "last_mb": samples[-1][1],
        "slope_mb_per_minute": round(60 * slope, 3),
        "answered": clients.outcomes["answered"],
        "samples": samples,
    }


def measure_restart(
    server: Server, clients: Clients, seconds: float, again: Any
) -> tuple[dict[str, Any], Server]:
    """SIGTERM in the middle, and a new server on the same port."""
    codes = []
    replacement = server

    def restart() -> None:
        nonlocal replacement
        time.sleep(seconds / 3)
        codes.append(server.stop())
        replacement = again(server.port)

    figures = clients.figures(0, clients.run(seconds, restart))
    figures["exit_status"] = codes[0]
    figures.setdefault("lost", 0)
    return figures, replacement


def measure_shares(
    start: Callable[[], Server],
    drive: Callable[[Server], Clients],
    own_rate: Callable[[], float],
    given: argparse.Namespace,
) -> dict[str, Any]:
    """Rounds under load, the bare model before and after each, and the share of it."""
    bare, rounds = [own_rate()], []
    for _ in range(given.rounds):
        server = start()
        try:
            rounds.append(measure_load(server, drive(server), given.seconds, given.ramp))
        finally:
            server.stop()
        bare.append(own_rate())
        share = rounds[-1]["images_per_second"] / statistics.mean(bare[-2:])
        rounds[-1]["share_of_bare"] = round(share, 3)
    return {
        "bare_images_per_second": bare,
        "rounds": rounds,
        "share_of_bare": statistics.median(r["share_of_bare"] for r in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16, help="images taken from the folder")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3, help="of the load")
    parser.add_argument("--ramp", type=float, default=15, help="seconds before the load is counted")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--only", nargs="+", default=["load"], choices=["load", "memory", "restart"]
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--masks", type=Path, help=argparse.SUPPRESS)  # in this process
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)  # in this process
    given = parser.parse_args()
    cases = prepare(given.images, given.count)
    if given.masks:
        single_masks(given.model, cases, given.masks)
        return
    if given.bare:
        print(bare_rate(given.model, cases, given.batch, given.seconds))
        return

    def in_a_process(*options: str) -> str:
        command = [sys.executable, *sys.argv, *options]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        in_a_process("--masks", f"{folder}/masks.npz")
        with np.load(f"{folder}/masks.npz") as saved:
            masks = [saved[f"arr_{i}"] for i in range(len(cases))]

    def start(port: int = 0) -> Server:
        return Server(given.model, given.batch, port)

    def drive(server: Server) -> Clients:
        return Clients(server.port, cases, masks, given.clients)

    from setr.provenance import provenance

    report: dict[str, Any] = {
        "provenance": provenance(0),
        "clients": given.clients,
        "batch": given.batch,
        "sizes": SIZES,
    }
    for name in given.only:
        if name == "load":
            report[name] = measure_shares(
                start, drive, lambda: float(in_a_process("--bare")), given
            )
            continue
        server = start()
        try:
            if name == "memory":
                report[name] = measure_memory(server, drive(server), given.seconds)
            else:
                report[name], server = measure_restart(server, drive(server), given.seconds, start)
        finally:
            server.stop()
    for name in given.only:
        print(name)
        for key, value in report[name].items():
            if key != "samples":
                print(f"  {key:<22} {value}")
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"serve_{'_'.join(given.only)}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
