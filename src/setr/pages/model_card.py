"""The model card: architecture, figures, pretrained weights, and how to reproduce the model.

Its head is what the Hugging Face Hub reads: it finds models by it and shows the figures.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import yaml

from setr.catalog import DecoderName
from setr.model import SETR
from setr.model_info import ModelInfo, licence_of

_DECODERS: dict[DecoderName, tuple[str, str]] = {
    "naive": ("SETR-Naive", "2012.15840"),
    "pup": ("SETR-PUP", "2012.15840"),
    "mla": ("SETR-MLA", "2012.15840"),
    "segmenter": ("Segmenter's mask transformer", "2105.05633"),
    "eomt": ("EoMT's queries", "2503.19108"),
    "dpt": ("DPT's decoder", "2103.13413"),
    "upernet": ("UPerNet", "1807.10221"),
    "linear": ("A linear classifier", ""),
    "fcn": ("FCN", "1411.4038"),
    "semantic_fpn": ("Semantic FPN", "1901.02446"),
}
"""Name of each decoder, and its paper on arXiv, with which the Hub tags the model."""
_MIOU = " mIoU"
"""After the name of a split, how its mean IoU is called among the metrics."""


def model_card(model: SETR, info: ModelInfo) -> str:
    """The README.md of a model directory."""
    arguments = model.arguments
    head = yaml.safe_dump(_metadata(info), sort_keys=False, allow_unicode=True, width=1000)
    figures = "\n".join(f"| {key} | {value} |" for key, value in info.metrics.items())
    table = f"| figure | value |\n|---|---|\n{figures}" if figures else "No figures were recorded."
    weights = (
        f"started from `{info.pretrained}` (licence of these weights: {licence_of(model, info)})"
        if info.pretrained
        else "no pretrained weights recorded"
    )
    crop = f", trained on crops of {_times(info.crop_size)}" if info.crop_size else ""
    window = (
        f"windows of {_times(info.protocol.window)}, step {_times(info.protocol.stride)}"
        if info.protocol.window
        else "whole images"
    )
    data = f"\nData: `{info.data}`." if info.data else ""
    reads = f"\nReads {info.bands}.\n" if info.bands else ""
    return f"""---
{head}---
# {info.recipe}

{_decoder(arguments["decoder"])} on `{arguments["encoder"]}`{crop}; tested on {window}.
Encoder: {weights}.{data}

{model.num_classes} classes: {", ".join(info.labels.classes)}.
{reads}
## Figures

{table}

## Use

With the toolkit setr for semantic segmentation (the project of that name on PyPI is another one):

```python
import setr
result = setr.load("path/to/this/folder").predict("image.jpg")  # or its name on the Hub
result.save("mask.png")
```

## Make it again

{_again(info.command)}
"""


def _metadata(info: ModelInfo) -> dict[str, Any]:
    """What the Hub reads, as it demands it: a wrong entry makes it refuse the upload."""
    known: dict[str, Any] = {
        "library_name": "setr",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "setr"],
    }
    if info.base_model:
        known["base_model"] = info.base_model.split("; ")
    if info.data and "/" in info.data:
        known["datasets"] = [info.data]
    scores = {
        name.removesuffix(_MIOU): float(value)
        for name, value in info.metrics.items()
        if name.endswith(_MIOU) and isinstance(value, Real)
    }
    if info.data and scores:
        known["metrics"] = ["mean_iou"]
        results = [_result(info.data, split, score) for split, score in scores.items()]
        known["model-index"] = [{"name": info.recipe, "results": results}]
    return known


def _result(data: str, split: str, score: float) -> dict[str, Any]:
    return {
        "task": {"type": "image-segmentation"},
        "dataset": {"type": data, "name": data, "split": split},
        "metrics": [{"type": "mean_iou", "value": score, "name": split + _MIOU}],
    }


def _decoder(name: DecoderName) -> str:
    title, paper = _DECODERS[name]
    return f"[{title}](https://arxiv.org/abs/{paper})" if paper else title


def _again(command: str | None) -> str:
    if not command:
        return "Not recorded."
    if not command.startswith("setr.train("):
        return f"```bash\n{command}\n```"
    return f"From Python, with the same objects:\n\n```python\nimport setr\n{command}\n```"


def _times(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if size else "the window"
