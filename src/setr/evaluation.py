"""Testing a model on a split of a data set under a protocol, streaming.

Memory does not depend on the number of images: integer counts are all that is kept of one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr.config import Precision
from setr.datasets import Dataset
from setr.errors import SetrError
from setr.hub import ModelInfo
from setr.images import write_bytes
from setr.inference import normalize, predict_mask
from setr.loader import whole_images
from setr.metrics import ConfusionMatrix
from setr.model import SETR
from setr.progress import Progress


def evaluate(
    model: SETR,
    info: ModelInfo,
    dataset: Dataset,
    *,
    precision: Precision = "auto",
    workers: int = 1,
    on_image: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
) -> dict[str, Any]:
    """Test a model on a split under `info.protocol`.

    Args:
        model: the model, on any device; its mode is restored afterwards.
        info: normalisation and protocol.
        dataset: a split whose classes equal the model's.
        precision: of the forward pass.
        workers: processes that decode.
        on_image: called with index, image (H, W, 3) uint8, truth (H, W) and prediction (H, W).

    Returns:
        The figures of `ConfusionMatrix.summary`, and `images` and `seconds`.

    Raises:
        SetrError: no images, or another class list.
    """
    if not len(dataset):
        raise SetrError(f"split '{dataset.split}' of {dataset.name} has no images")
    if len(dataset.labels.classes) != model.num_classes:
        raise SetrError(
            f"the model has {model.num_classes} classes but {dataset.name} has "
            f"{len(dataset.labels.classes)}; they must be the same"
        )
    device = next(model.parameters()).device
    dtype = autocast_dtype(precision, device)
    was_training = model.training
    model.eval()
    counts = ConfusionMatrix(model.num_classes, device)
    began = time.monotonic()
    progress = Progress("eval", len(dataset))
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for i, (images, masks) in enumerate(whole_images(dataset, workers)):
            x = normalize(images.to(device), info.mean, info.std)
            size = (masks.shape[-2], masks.shape[-1])
            prediction, _ = predict_mask(model, x, info.protocol, size=size)
            counts.update(prediction, masks.to(device))
            if on_image:
                on_image(i, images[0], masks[0], prediction[0].cpu())
            progress.update(i + 1, images=1)
    progress.close()
    model.train(was_training)
    figures = counts.summary(dataset.labels.classes)
    return {**figures, "images": len(dataset), "seconds": time.monotonic() - began}


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast type of a precision; None computes in fp32.

    `auto` is bf16 where the hardware multiplies it (CUDA since Ampere, CPUs with AVX512-BF16 or
    AMX), else fp32.

    Raises:
        SetrError: the hardware lacks the precision asked for.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if precision == "fp16" and device.type == "cpu":
        raise SetrError("precision fp16: CPUs train in bf16 or fp32; set --train.precision auto")
    if precision == "bf16" and not has_bf16:
        raise SetrError(f"precision bf16: this {device.type} lacks it; set --train.precision auto")
    if precision == "fp32" or (precision == "auto" and not has_bf16):
        return None
    return torch.float16 if precision == "fp16" else torch.bfloat16


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as JSON; the file appears when complete."""
    write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())
