"""SegFormer-B2 by Hugging Face transformers, on the same images, steps, batch and crop as ours.

    PEER/bin/python benchmarks/camvid/rival_segformer.py --data CAMVID --out runs/segformer \
        --weights MIT_B2_FOLDER --steps 600 --batch-size 8 --short-side 360 --crop 252 336

The recipe is the paper's (Xie et al. 2021, section 4.1): AdamW 6e-5, head ten times faster, weight
decay 0.01, linear warm-up, polynomial decay of power 1, random resize 0.5 to 2, crop and flip.
Images and augmentation come from our loader, since the library has none for masks; `--weights` is a
folder or Hub name of MiT-B2, whose published weights are for non-commercial use.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rival import SCALES, Timer, arguments, classes_of, finish, images, save_labels

from setr import _torchvision  # noqa: F401  transformers imports torchvision
from setr.data.loader import training_batches
from setr.datasets import open_dataset
from setr.transforms import Augmentation

MEAN = torch.tensor((123.675, 116.28, 103.53)).reshape(1, 3, 1, 1)
STD = torch.tensor((58.395, 57.12, 57.375)).reshape(1, 3, 1, 1)
LR, HEAD_FACTOR, WEIGHT_DECAY = 6e-5, 10.0, 0.01


def build(given: argparse.Namespace, num_classes: int) -> Any:
    """SegFormer-B2, its encoder pretrained where weights are given."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    shape: dict[str, Any] = {
        "depths": [3, 4, 6, 3],
        "hidden_sizes": [64, 128, 320, 512],
        "decoder_hidden_size": 768,
    }
    if given.tiny:
        shape = {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 40, 64],
            "sr_ratios": [1, 1, 1, 1],
            "decoder_hidden_size": 16,
        }
    if given.weights:
        return SegformerForSemanticSegmentation.from_pretrained(
            given.weights, num_labels=num_classes, decoder_hidden_size=768,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    return SegformerForSemanticSegmentation(
        SegformerConfig(num_labels=num_classes, drop_path_rate=0.1, **shape)
    )


def groups(model: Any) -> list[dict[str, Any]]:
    """Encoder and head, each with and without weight decay."""
    found: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        factor = HEAD_FACTOR if name.startswith("decode_head") else 1.0
        decay = 0.0 if parameter.ndim <= 1 else WEIGHT_DECAY
        found.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": LR * factor, "weight_decay": decay}
        for (factor, decay), parameters in found.items()
    ]


def train(model: Any, given: argparse.Namespace, device: torch.device, timer: Timer) -> None:
    """The recipe's steps, in bf16 where the device has it."""
    dataset = open_dataset(str(given.data), "train", "camvid")
    batches = training_batches(
        dataset,
        Augmentation(crop_size=tuple(given.crop), short_side=given.short_side),
        batch_size=given.batch_size,
        seed=given.seed,
        start=0,
        stop=given.steps,
        workers=given.workers,
    )
    optimizer = torch.optim.AdamW(groups(model))
    warm = min(1500, given.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / (warm + 1), 1.0) * (1 - t / given.steps)
    )
    model.train()
    for step, (pixels, masks) in enumerate(batches, 1):
        x = normalised(pixels.to(device).permute(0, 3, 1, 2))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(pixel_values=x).logits
        logits = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(logits, masks.to(device).long(), ignore_index=255)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        value = loss.item()  # waits for the device, as reading the loss does in every trainer
        timer.step()
        if step % 50 == 0 or step == given.steps:
            print(f"step {step} loss {value:.4f}", flush=True)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """RGB 0 to 255 (B, 3, H, W) as the model wants it."""
    return (pixels.float() - MEAN.to(pixels.device)) / STD.to(pixels.device)


@torch.no_grad()
def test(
    model: Any, given: argparse.Namespace, device: torch.device, folder: Path,
    scales: tuple[float, ...],
) -> None:  # fmt: skip
    """Write label images of the test split, whole images, averaging over scales and mirroring."""
    model.eval()
    for path in images(given.data, "test"):
        picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        H, W = picture.shape[:2]
        pixels = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None]
        total: Any = 0
        for scale in scales:
            factor = int(given.short_side * scale) / min(H, W)
            size = (round(H * factor), round(W * factor))
            x = F.interpolate(normalised(pixels), size=size, mode="bilinear", antialias=factor < 1)
            for flip in (False,) if len(scales) == 1 else (False, True):
                logits = model(pixel_values=x.flip(-1) if flip else x).logits.float()
                logits = F.interpolate(logits, size=(H, W), mode="bilinear")
                total = total + (logits.flip(-1) if flip else logits).softmax(dim=1)
        save_labels(folder, path, total[0].argmax(dim=0).cpu().numpy().astype(np.uint8))


def main() -> None:
    given = arguments(__doc__ or "")
    import transformers

    torch.manual_seed(given.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(given, len(classes_of(given.data)[0])).to(device)
    timer = Timer()
    train(model, given, device, timer)
    if not given.no_test:
        test(model, given, device, given.out / "single_scale", (1.0,))
        if given.multi_scale:
            test(model, given, device, given.out / "multi_scale", SCALES)
    finish(given, f"transformers {transformers.__version__}", timer, model)


if __name__ == "__main__":
    main()
