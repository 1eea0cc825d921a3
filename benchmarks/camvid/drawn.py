"""Drawn scenes as a folder like CamVid's, for rivals that read files.

    python benchmarks/camvid/drawn.py FOLDER

writes 1600 scenes to train on (`setr demo` takes the first 1000), 50 to validate on, and the 100
that the demo is tested on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setr.data import scenes
from setr.images import encode_png
from setr.labels import IGNORE

DEMO = {"train": ("train", 1600), "val": ("check", 50), "test": ("val", 100)}
"""Split of the folder: the split that seeds its scenes, and how many."""


def write_split(folder: Path, split: str, source: str, count: int, size: int) -> None:
    """Write images and masks, and the YAML that describes them."""
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        arrays = scenes.draw(source, i, size=size)
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            (folder / kind / split / f"{split}_{i:04d}.png").write_bytes(encode_png(array))
    names = ", ".join(scenes.CLASSES)
    text = f"path: .\nclasses: [{names}]\nignore: {IGNORE}\n"
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit((__doc__ or "").strip())
    for split, (source, count) in DEMO.items():
        write_split(Path(sys.argv[1]), split, source, count, scenes.SIZE)


if __name__ == "__main__":
    main()
