"""Time and memory of large inputs: do they grow with pixels, and with nothing else?

    python benchmarks/large.py [--tiny] [--only image raster video]

ViT-tiny with PUP, 150 classes, random weights, blended windows of 512 pixels. Each size runs in a
process of its own, so that its peak memory is its own; pixels are drawn, files are made on the fly.

- image: `Predictor.predict` of an array in memory.
- raster: `predict_raster`, GeoTIFF to GeoTIFF (extra `geo`).
- video: `predict_video` of 256x256 frames to an overlay video.

Prints a table and writes JSON beside the results of the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import peak_mb

CASES = {
    "image": ((1500, 2000), (3000, 4000), (6000, 8000)),
    "raster": ((3000, 4000), (6000, 8000), (12000, 16000)),
    "video": (50, 200),
}
TINY = {"image": ((150, 200), (300, 400)), "raster": ((150, 200), (300, 400)), "video": (3, 6)}


def run_case(case: str, size: Any, window: int) -> dict[str, float]:
    """One size in this process."""
    import torch

    from setr import create_model
    from setr.labels import Labels
    from setr.model_info import ModelInfo
    from setr.predictor import Predictor

    torch.manual_seed(0)
    model = create_model("setr_pup_tiny", num_classes=150, img_size=window, aux=False)
    labels = Labels(tuple(f"class {i}" for i in range(150)))
    predictor = Predictor(model, ModelInfo(labels), window=window)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if case == "video":
            pixels = size * 256 * 256
            work = _video(predictor, folder, size)
        else:
            pixels = size[0] * size[1]
            work = (_image if case == "image" else _raster)(predictor, folder, size)
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "seconds_per_megapixel": seconds / pixels * 1e6,
        "peak_mb": round(peak_mb()),
    }


def _image(predictor: Any, _: Path, size: tuple[int, int]) -> Any:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return lambda: predictor.predict(image)


def _raster(predictor: Any, folder: Path, size: tuple[int, int]) -> Any:
    import rasterio

    from setr.prediction.mapping import predict_raster

    shape = {"count": 3, "height": size[0], "width": size[1], "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5.4e6)}
    rng = np.random.default_rng(0)
    with rasterio.open(folder / "in.tif", "w", driver="GTiff", tiled=True, **shape, **place) as f:
        for top in range(0, size[0], 256):
            rows = min(256, size[0] - top)
            block = rng.integers(0, 256, (3, rows, size[1]), np.uint8)
            f.write(block, window=((top, top + rows), (0, size[1])))
    return lambda: predict_raster(predictor, folder / "in.tif", {"mask": folder / "out.tif"})


def _video(predictor: Any, folder: Path, count: int) -> Any:
    from setr.data import scenes
    from setr.prediction.filming import predict_video
    from setr.prediction.video import VideoWriter

    with VideoWriter(folder / "in.mp4", 25.0) as writer:
        for i in range(count):
            writer.add(scenes.draw("video", i % 8, size=256)[0])
    return lambda: predict_video(predictor, folder / "in.mp4", folder / "out")


def main() -> None:
    """Run the cases one after another and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--worker", nargs=2)
    given = parser.parse_args()
    window = 64 if given.tiny else 512
    if given.worker:
        case, size = given.worker[0], json.loads(given.worker[1])
        print(json.dumps(run_case(case, size, window)))
        return
    rows = []
    for case in given.only:
        for size in (TINY if given.tiny else CASES)[case]:
            command = [sys.executable, __file__, "--worker", case, json.dumps(size)]
            command += ["--tiny"] if given.tiny else []
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows.append({"case": case, "size": size, **json.loads(answer.splitlines()[-1])})
            found = rows[-1]
            print(
                f"{case:<8}{size!s:<16}{found['seconds']:>9.1f} s"
                f"{found['seconds_per_megapixel']:>9.2f} s/Mpx{found['peak_mb']:>7.0f} MB",
                flush=True,
            )
    if not given.tiny:
        path = Path(__file__).parent / "results" / "large.json"
        path.write_text(
            json.dumps({"machine": platform.processor(), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
