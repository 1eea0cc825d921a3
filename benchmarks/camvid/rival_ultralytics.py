"""YOLO26 of Ultralytics, its `semantic` task, by its own trainer, loader and settings.

    PEER/bin/python benchmarks/camvid/rival_ultralytics.py --data CAMVID --out runs/yolo \
        --size n --steps 3000 --batch-size 16 --short-side 360 --crop 252 336 --workers 0

Everything is what `yolo semantic train` does by default (mosaic, HSV, flip, `optimizer=auto`, loss
of cross-entropy and Dice, moving average, the best epoch on val kept), except for the length:
`--steps` become whole epochs. It trains on whole images at `--short-side`, so `--crop` is not used,
and takes no weights: its own, trained on Cityscapes, are a pickle that has to be downloaded, so the
network starts at random. The test predicts whole images.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import cv2
import yaml
from rival import Timer, arguments, classes_of, finish, images, save_labels

from setr import _torchvision  # noqa: F401  ultralytics imports torchvision

SIZES = ("n", "s", "m", "l", "x")


def described(given: argparse.Namespace) -> Path:
    """Its YAML beside links to the files, since it writes its cache next to the data."""
    names, ignore = classes_of(given.data)
    folder = given.out / "data"
    for split in ("train", "val"):
        for theirs, ours in (("images", "images"), ("masks", "labels")):
            links = folder / theirs / split
            links.mkdir(parents=True, exist_ok=True)
            for path in (given.data / ours / split).iterdir():
                link = links / path.name
                if not link.is_symlink():
                    link.symlink_to(path)
    description = folder / "data.yaml"
    values = {
        "path": str(folder),
        "train": "images/train",
        "val": "images/val",
        "masks_dir": "masks",
        "names": dict(enumerate(names)),
        "label_mapping": {ignore: "ignore_label"},
    }
    description.write_text(yaml.safe_dump(values), encoding="utf-8")
    return description


def long_side(given: argparse.Namespace) -> int:
    """Longer side of the first image, once its shorter one is as given: `imgsz`."""
    sides = cv2.imread(str(images(given.data, "train")[0])).shape[:2]
    return round(given.short_side * max(sides) / min(sides))


def train(model: Any, given: argparse.Namespace, timer: Timer) -> None:
    """Whole epochs that make up the steps."""
    model.add_callback("on_train_batch_end", lambda _: timer.step())
    count = len(images(given.data, "train"))
    model.train(
        data=str(described(given)),
        epochs=max(1, round(given.steps * given.batch_size / count)),
        batch=given.batch_size,
        imgsz=long_side(given),
        workers=given.workers,
        seed=given.seed,
        plots=False,
        pretrained=False,
        project=str(given.out),
        name="run",
        exist_ok=True,
    )


def main() -> None:
    given = arguments(__doc__ or "", size=SIZES)
    if given.weights:
        raise SystemExit("--weights: this rival starts from random weights")
    import ultralytics

    model = ultralytics.YOLO(f"yolo26{given.size}-sem.yaml", task="semantic")
    timer = Timer()
    train(model, given, timer)
    if not given.no_test:
        best = ultralytics.YOLO(given.out / "run" / "weights" / "best.pt")
        for path in images(given.data, "test"):
            (result,) = best.predict(path, imgsz=long_side(given), verbose=False)
            save_labels(
                given.out / "single_scale", path, result.semantic_mask.data.cpu().numpy().squeeze()
            )
    finish(given, f"ultralytics {ultralytics.__version__}", timer, model.model)


if __name__ == "__main__":
    main()
