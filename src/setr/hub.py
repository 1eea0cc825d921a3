"""A trained model as a directory in Hub layout: config.json, model.safetensors, README.md.

`config.json` carries everything evaluation and prediction need besides the weights: architecture,
classes, colours, label map, normalisation and test protocol.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from setr.errors import SetrError
from setr.images import write_bytes
from setr.inference import Protocol
from setr.labels import Labels
from setr.model import SETR

FORMAT = "setr-1"


@dataclass(frozen=True)
class ModelInfo:
    """What belongs to a model besides its weights.

    Args:
        labels: classes, colours and label map.
        mean: of the input channels, images in 0 to 1.
        std: of the input channels.
        protocol: how the model is tested single-scale; prediction uses it too.
        recipe: name of the recipe that trained it.
        metrics: figures printed on the model card.
    """

    labels: Labels
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    protocol: Protocol = field(default_factory=Protocol)
    recipe: str = "custom"
    metrics: dict[str, Any] = field(default_factory=dict)


def save_pretrained(
    folder: Path, model: SETR, info: ModelInfo, *, state: dict[str, Tensor] | None = None
) -> None:
    """Write a model directory; each file appears under its name when complete.

    Args:
        folder: made if missing.
        model: the model.
        info: what else evaluation needs.
        state: weights to save in place of the model's own (a moving average).
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous() for k, v in (state or model.state_dict()).items()}
    values = {
        "format": FORMAT,
        "model": model.arguments,
        "labels": info.labels.to_dict(),
        "mean": info.mean,
        "std": info.std,
        "protocol": dataclasses.asdict(info.protocol),
        "recipe": info.recipe,
        "metrics": info.metrics,
    }
    write_bytes(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    write_bytes(folder / "config.json", (json.dumps(values, indent=1) + "\n").encode())
    write_bytes(folder / "README.md", _card(model, info).encode())


def from_pretrained(folder: Path) -> tuple[SETR, ModelInfo]:
    """Read a model directory; the model comes in eval mode on the CPU.

    Raises:
        SetrError: missing or broken files, or weights that do not fit the configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise SetrError(f"{folder}/config.json: format is not '{FORMAT}'")
        model = SETR(**{k: _tuples(v) for k, v in values["model"].items()})
        protocol = Protocol(**{k: _tuples(v) for k, v in values["protocol"].items()})
        info = ModelInfo(
            labels=Labels.from_dict(values["labels"]),
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            protocol=protocol,
            recipe=values["recipe"],
            metrics=values["metrics"],
        )
    except FileNotFoundError:
        raise SetrError(f"{folder}: no config.json; is this a model directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SetrError(f"{folder}/config.json: broken ({error!r:.120})") from None
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise SetrError(f"{path}: no such file; the model directory is incomplete") from None
    except (SafetensorError, RuntimeError) as error:
        raise SetrError(f"{path}: broken or of another model ({str(error)[:120]!r})") from None
    return model.eval(), info


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _card(model: SETR, info: ModelInfo) -> str:
    figures = "\n".join(f"- {key}: {value}" for key, value in info.metrics.items())
    return f"""---
library_name: setr
pipeline_tag: image-segmentation
---
# {info.recipe}

A {model.arguments["decoder"].upper()} decoder on `{model.arguments["encoder"]}`, \
{model.num_classes} classes: {", ".join(info.labels.classes)}.

{figures or "No figures were recorded."}

```python
import setr
result = setr.load("path/to/this/folder").predict("image.jpg")
result.save("mask.png")
```
"""
