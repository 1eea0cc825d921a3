"""Images per second from Cityscapes-sized files to training crops, one core, beside mmsegmentation.

    python benchmarks/data.py --peer-python /path/to/venv-with-mmseg/bin/python
    python benchmarks/data.py --startup 1000000

Every round runs all variants one after the other on the same files, so that they share the
machine's moods; the table shows medians over rounds and the ratio to the peer, round by round.
Files are drawn (smooth noise and edges, which compress like photos; row filters chosen as libpng
does, since undoing them is half the work), or taken from `--images`, a folder in Cityscapes'
layout. The peer runs its own pipeline, in its own Python, on the same files; it pads and stacks
later, which is not counted for it, while our time includes stacking.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

BATCH = 8
PEER = r"""
import json, os, sys, time, types
sys.modules["mmcv.ops"] = types.SimpleNamespace(point_sample=None)  # mmcv-lite has no compiled ops
os.environ["OMP_NUM_THREADS"] = "1"
import cv2, numpy as np, torch
cv2.setNumThreads(0)
torch.set_num_threads(1)
import mmseg.datasets.transforms  # registers the transforms
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
init_default_scope("mmseg")
pipeline = Compose([
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(CROP, CROP), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
])
pairs = json.loads(sys.argv[1])
np.random.seed(0)
for line in sys.stdin:
    began = time.perf_counter()
    for i in range(int(line)):
        image, mask = pairs[i % len(pairs)]
        pipeline(dict(img_path=image, seg_map_path=mask, label_map=None,
                      reduce_zero_label=False, seg_fields=[]))
    print(time.perf_counter() - began, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="Python that has mmsegmentation 1.2.2")
    parser.add_argument("--images", help="folder in Cityscapes' layout; drawn files by default")
    parser.add_argument("--count", type=int, default=48, help="images per variant and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--crop", type=int, default=768)
    parser.add_argument("--startup", type=int, help="measure opening a list of this many pairs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    figures = startup(given.startup) if given.startup else throughput(given)
    figures["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def throughput(given: argparse.Namespace) -> dict:
    from setr.reading import decode

    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(given.images) if given.images else draw(Path(folder), tuple(given.size))
        jpeg = as_jpeg(root, Path(folder) / "jpeg")
        fast = decode._decode_png
        variants = {"ours, PNG": (root, fast)} if fast else {}
        variants |= {"ours, PNG by Pillow": (root, None), "ours, JPEG": (jpeg, fast)}
        peer = Peer(given.peer_python, root, given.crop) if given.peer_python else None
        rates: dict[str, list[float]] = {}
        parts: dict[str, list[np.ndarray]] = {}
        for _ in range(given.rounds):
            for name, (place, decoder) in variants.items():
                decode._decode_png = decoder
                spent = ours(place, given.count, given.crop)
                rates.setdefault(name, []).append(given.count / spent.sum())
                parts.setdefault(name, []).append(spent)
            if peer:
                rates.setdefault("mmsegmentation, PNG", []).append(peer.rate(given.count))
    print(
        f"{'':<22}{'images/s':>10}{'decode %':>10}{'augment %':>11}{'collate %':>11}{'x peer':>8}"
    )
    theirs = rates.get("mmsegmentation, PNG")
    for name, values in rates.items():
        shares = ""
        if name in parts:
            spent = np.sum(parts[name], axis=0)
            shares = "{:>10.0f}{:>11.0f}{:>11.0f}".format(*100 * spent / spent.sum())
        ratio = [a / b for a, b in zip(values, theirs, strict=True)] if theirs else []
        times = f"{statistics.median(ratio):>8.2f}" if ratio else ""
        print(f"{name:<22}{statistics.median(values):>10.1f}{shares:<32}{times}")
    shares_by_name = {
        name: (np.sum(spent, axis=0) / np.sum(spent)).round(3).tolist()
        for name, spent in parts.items()
    }
    return {"images_per_second": rates, "decode_augment_collate": shares_by_name}


def ours(root: Path, count: int, crop: int) -> np.ndarray:
    """Seconds for decoding, augmentation and collation of `count` images."""
    from setr.data.loader import stack
    from setr.datasets import open_dataset
    from setr.transforms import Augmentation

    dataset = open_dataset(str(root), "train")
    augment = Augmentation((crop, crop))
    spent, batch = np.zeros(3), []
    for i in range(count):
        start = time.perf_counter()
        rows, mask = dataset.open(i % len(dataset))
        rows, decoded = Timed(rows), time.perf_counter()
        batch.append(augment(rows, mask, np.random.default_rng((0, 0, i))))
        augmented = time.perf_counter()
        if len(batch) == BATCH or i == count - 1:
            stack(batch)
            batch = []
        late = rows.seconds
        spent += (
            decoded - start + late,
            augmented - decoded - late,
            time.perf_counter() - augmented,
        )
    return spent


class Timed:
    """Rows of an image and the seconds it took to decode those asked for."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.shape, self.seconds = rows, rows.shape, 0.0

    def __getitem__(self, part: slice | tuple[slice, slice]) -> np.ndarray:
        start = time.perf_counter()
        pixels = self.rows[part]
        self.seconds += time.perf_counter() - start
        return pixels


class Peer:
    """mmsegmentation's pipeline in a process of its own."""

    def __init__(self, python: str, root: Path, crop: int) -> None:
        from setr.datasets import open_dataset

        pairs = [[str(p.image), str(p.mask)] for p in open_dataset(str(root), "train").pairs]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        self.process = subprocess.Popen(
            [python, "-c", PEER.replace("CROP", str(crop)), json.dumps(pairs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None,
            text=True, env=environment,
        )  # fmt: skip
        self.rate(2)  # imports and first calls are not measured

    def rate(self, count: int) -> float:
        """Images per second over `count` images."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer's Python failed; does it have mmsegmentation 1.2.2?")
        return count / float(line)


def draw(root: Path, size: tuple[int, int], count: int = 4) -> Path:
    """Street-like files in Cityscapes' layout: smooth noise, edges, and sensor noise."""
    from setr.images import encode_png

    H, W = size
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = rng.uniform(0, 255, (H // 64 + 1, W // 64 + 1, 3)).astype(np.float32)
        image = cv2.resize(coarse, (W, H), interpolation=cv2.INTER_CUBIC)
        ids = np.full((H, W), 7, np.uint8)
        for _ in range(160):
            corner, far = rng.integers(0, (W, H)), rng.integers(0, (W, H))
            colour = rng.uniform(0, 255, 3)
            cv2.rectangle(
                image, corner.tolist(), ((corner + far) // 2).tolist(), colour.tolist(), -1
            )
            cv2.rectangle(ids, corner.tolist(), ((corner + far) // 2).tolist(),
                          int(rng.integers(0, 34)), -1)  # fmt: skip
        image += 1.5 * rng.standard_normal((H, W, 1), dtype=np.float32)
        stem = f"drawn_{i:06d}_000000"
        for kind, suffix, array in (
            ("leftImg8bit", "leftImg8bit", np.clip(image, 0, 255).astype(np.uint8)),
            ("gtFine", "gtFine_labelIds", ids),
        ):
            folder = root / kind / "train" / "drawn"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}_{suffix}.png").write_bytes(encode_png(array))
    return root


def as_jpeg(root: Path, target: Path) -> Path:
    """The same pairs with images as JPEG (quality 90), in plain folders."""
    from setr.datasets import open_dataset

    for kind in ("images", "labels"):
        (target / kind / "train").mkdir(parents=True)
    dataset = open_dataset(str(root), "train")
    for i, pair in enumerate(dataset.pairs):
        assert pair.mask is not None
        image = cv2.imread(str(pair.image))
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        cv2.imwrite(str(target / "images" / "train" / f"{i}.jpg"), image, quality)
        (target / "labels" / "train" / f"{i}.png").write_bytes(pair.mask.read_bytes())
    (target / "data.yaml").write_text("labels: cityscapes\n")
    return target


STARTUP = """
import sys, time
from setr.processes.machine import process_peak
began = time.perf_counter()
from setr.datasets import open_dataset
dataset = open_dataset(sys.argv[1], "train")
opened = time.perf_counter() - began
memory = process_peak() / 2**20
from setr.data.order import BatchOrder
batch = next(iter(BatchOrder(len(dataset), 8, seed=0, start=0, stop=1)))
pairs = [dataset.pairs[i] for _, i in batch]
print(opened, time.perf_counter() - began, memory, process_peak() / 2**20, len(dataset))
"""


def startup(count: int) -> dict:
    """Opening a list of `count` pairs (no such files exist) and drawing the first batch of it."""
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "train.txt").open("w") as file:
            for i in range(count):
                name = f"train/part_{i % 1000:03d}/frame_{i:09d}"
                file.write(f"images/{name}.jpg\tlabels/{name}.png\n")
        (Path(folder) / "data.yaml").write_text("labels: cityscapes\ntrain: train.txt\n")
        done = subprocess.run(
            [sys.executable, "-c", STARTUP, folder], capture_output=True, text=True, check=True
        )
    opened, ready, memory, with_torch, length = map(float, done.stdout.split())
    assert length == count
    print(f"{count:,} pairs: opened in {opened:.1f} s, {memory:.0f} MB; first batch drawn after "
          f"{ready:.1f} s with {with_torch:.0f} MB (torch imported)")  # fmt: skip
    return {"pairs": count, "open_seconds": opened, "open_mb": memory, "ready_seconds": ready,
            "ready_mb": with_torch}  # fmt: skip


if __name__ == "__main__":
    main()
