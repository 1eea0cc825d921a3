"""The model card: architecture, figures, pretrained weights, and how to reproduce the model."""

from __future__ import annotations

from setr.catalog import DecoderName
from setr.model import SETR
from setr.model_info import ModelInfo, licence_of

_DECODERS: dict[DecoderName, str] = {
    "naive": "SETR-Naive",
    "pup": "SETR-PUP",
    "mla": "SETR-MLA",
    "segmenter": "Segmenter's mask transformer",
    "eomt": "EoMT's queries",
    "dpt": "DPT's decoder",
    "upernet": "UPerNet",
    "linear": "A linear classifier",
    "fcn": "FCN",
    "semantic_fpn": "Semantic FPN",
}


def model_card(model: SETR, info: ModelInfo) -> str:
    """The README.md of a model directory."""
    arguments = model.arguments
    figures = "\n".join(f"| {key} | {value} |" for key, value in info.metrics.items())
    table = f"| figure | value |\n|---|---|\n{figures}" if figures else "No figures were recorded."
    weights = (
        f"started from `{info.pretrained}` (licence of these weights: {licence_of(model, info)})"
        if info.pretrained
        else "no pretrained weights recorded"
    )
    again = f"```bash\n{info.command}\n```" if info.command else "Not recorded."
    crop = f", trained on crops of {_times(info.crop_size)}" if info.crop_size else ""
    window = (
        f"windows of {_times(info.protocol.window)}, step {_times(info.protocol.stride)}"
        if info.protocol.window
        else "whole images"
    )
    reads = f"\nReads {info.bands}.\n" if info.bands else ""
    return f"""---
library_name: setr
pipeline_tag: image-segmentation
tags: [semantic-segmentation, setr]
---
# {info.recipe}

{_DECODERS[arguments["decoder"]]} on `{arguments["encoder"]}`{crop}; tested on {window}.
Encoder: {weights}.

{model.num_classes} classes: {", ".join(info.labels.classes)}.
{reads}
## Figures

{table}

## Use

With the toolkit setr for semantic segmentation (the project of that name on PyPI is another one):

```python
import setr
result = setr.load("path/to/this/folder").predict("image.jpg")
result.save("mask.png")
```

## Make it again

{again}
"""


def _times(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if size else "the window"
