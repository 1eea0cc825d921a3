"""Prediction of a folder: its rate beside the model's own, its manifest, kill -9, and Ray.

    python benchmarks/batch.py --model runs/demo --out runs/batch

Draws images (some of them broken), measures the model's own batched rate on the same images decoded
beforehand, then runs `setr predict` on the folder: undisturbed, killed with SIGKILL at random
moments and continued, and with `--engine ray`. The three must write the same files, byte for byte,
and one outcome per image. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from setr.data import scenes
from setr.images import encode_png, read_image
from setr.loading import load
from setr.provenance import provenance


def draw(folder: Path, count: int, broken: int, size: int) -> None:
    """Images 000000.png …, evenly spaced broken ones among them."""
    folder.mkdir(parents=True)
    every = count // broken if broken else count + 1
    kinds = (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"not an image")
    for i in range(count):
        data = encode_png(scenes.draw("archive", i, size=size)[0])
        if i % every == every - 1 and i // every < broken:
            data = kinds[i // every % 3](data)
        (folder / f"{i:06}.png").write_bytes(data)


def own_rate(model: str, folder: Path, batch: int, count: int) -> float:
    """Images per second of the model alone, on images in memory."""
    predictor, images = load(model), []
    for path in sorted(folder.iterdir()):
        try:
            images.append(read_image(path))
        except ValueError:
            continue
        if len(images) == count:
            break
    predictor.predict_batch(images[:batch])
    began = time.perf_counter()
    for start in range(0, len(images), batch):
        predictor.predict_batch(images[start : start + batch])
    return len(images) / (time.perf_counter() - began)


def command(model: str, folder: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "setr", "predict", model, str(folder), "-o", str(out), *options]


def start(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(words: list[str], out: Path) -> dict[str, float]:
    """Seconds of the whole command, and from the first outcome to the end."""
    began, first = time.perf_counter(), 0.0
    process, manifest = start(words), out / "manifest.jsonl"
    while process.poll() is None:
        if not first and manifest.exists() and manifest.stat().st_size:
            first = time.perf_counter()
        time.sleep(0.05)
    end = time.perf_counter()
    return {"seconds": end - began, "steady_seconds": end - (first or began)}


def killed(words: list[str], out: Path, times: int, seconds: float) -> list[int]:
    """Kill the command so many times; returns the outcomes it had each time, then finish it."""
    manifest, lines, seed = out / "manifest.jsonl", [], random.Random(0)
    for _ in range(times):
        process, before = start(words), manifest.stat().st_size if manifest.exists() else 0
        while process.poll() is None and not (
            manifest.exists() and manifest.stat().st_size > before
        ):
            time.sleep(0.02)
        time.sleep(seed.uniform(0, seconds / (times + 1)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines.append(manifest.read_bytes().count(b"\n"))
    start(words).wait()
    return lines


def summary(out: Path) -> dict[str, int]:
    """What the manifest says."""
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return {
        "lines": len(rows),
        "inputs": len({row["name"] for row in rows}),
        "failed": sum(row["status"] == "failed" for row in rows),
    }


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same outputs and outcomes."""
    names = [{p.name for p in folder.iterdir()} for folder in (one, other)]
    lines = [
        sorted((folder / "manifest.jsonl").read_text().splitlines()) for folder in (one, other)
    ]
    pictures = (name for name in names[0] if name.endswith(".png"))
    return (
        names[0] == names[1]
        and lines[0] == lines[1]
        and all((one / name).read_bytes() == (other / name).read_bytes() for name in pictures)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--out", type=Path, default=Path("runs/batch"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rate-images", type=int, default=800)
    parser.add_argument("--no-ray", action="store_true")
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    folder, good = given.out / "images", given.images - given.broken
    draw(folder, given.images, given.broken, given.size)
    rates = [own_rate(given.model, folder, given.batch, given.rate_images)]
    runs: dict[str, dict] = {}
    plain = given.out / "plain"
    options = ("--batch", str(given.batch))
    runs["plain"] = timed(command(given.model, folder, plain, *options), plain) | summary(plain)
    rates.append(own_rate(given.model, folder, given.batch, given.rate_images))
    cut = given.out / "killed"
    words = command(given.model, folder, cut, *options)
    lines = killed(words, cut, given.kills, runs["plain"]["steady_seconds"])
    runs["killed"] = summary(cut) | {"lines_at_kills": lines, "same_files": same(plain, cut)}
    if not given.no_ray:
        ray = given.out / "ray"
        words = command(given.model, folder, ray, *options, "--engine", "ray")
        runs["ray"] = timed(words, ray) | summary(ray) | {"same_files": same(plain, ray)}
    rate = statistics.mean(rates)
    for run in runs.values():
        if "seconds" in run:
            run["images_per_second"] = good / run["seconds"]
            run["steady_images_per_second"] = good / run["steady_seconds"]
            run["share_of_own_rate"] = run["steady_images_per_second"] / rate
    answer = {
        "images": given.images,
        "broken": given.broken,
        "size": given.size,
        "batch": given.batch,
        "own_images_per_second": rates,
        "runs": runs,
        "provenance": provenance(0),
        "cpus": os.cpu_count(),
    }
    (given.out / "batch.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(f"the model alone: {rates[0]:.1f} images/s before, {rates[1]:.1f} after")
    for name, run in runs.items():
        print(name, json.dumps(run))


if __name__ == "__main__":
    main()
