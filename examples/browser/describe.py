"""Write what the page needs to know of an exported model: classes, colours, normalisation, size.

python describe.py model.onnx        # writes model.json beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import setr


def main(path: Path) -> None:
    """Write the JSON file beside the model."""
    info = setr.load(path, device="cpu").info
    about = {
        "classes": info.labels.classes,
        "colours": info.labels.colours,
        "mean": info.mean,
        "std": info.std,
        "side": max(info.crop_size or (512, 512)),
    }
    path.with_suffix(".json").write_text(json.dumps(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the exported model: python describe.py model.onnx")
    main(Path(sys.argv[1]))
