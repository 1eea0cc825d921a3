"""SegFormer-B2 or UPerNet by Hugging Face transformers, on the same images, steps and crop as ours.

    PEER/bin/python benchmarks/camvid/rival_transformers.py --data CAMVID --out runs/segformer \
        --model segformer --weights MIT_B2_FOLDER --steps 600 --batch-size 8 --short-side 360 \
        --crop 252 336

SegFormer's recipe is its paper's (Xie et al. 2021, section 4.1): AdamW 6e-5, head ten times faster,
weight decay 0.01, linear warm-up, polynomial decay of power 1, random resize 0.5 to 2, crop, flip.
UPerNet reads four layers of a DINOv2 ViT-S/14, the encoder of our recipes, and has the recipe of
the library's example for semantic segmentation: AdamW 6e-5 for all, no weight decay, polynomial
decay of power 1; with `--optimizer ours` the learning rates, weight decay and warm-up of our CamVid
recipes. (The library's DPT takes square images only.) Images and augmentation come from our loader,
since the library has none for masks. `--weights` is a folder or Hub name of MiT-B2, whose published
weights are for non-commercial use; for UPerNet a file with timm's names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

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


class Optimization(NamedTuple):
    """AdamW's settings; the head learns `head_factor` times as fast as the encoder."""

    lr: float
    head_factor: float
    weight_decay: float
    warmup: int  # steps at most, and at most a tenth of all


RECIPES = {
    "segformer": Optimization(6e-5, 10.0, 0.01, 1500),
    "upernet": Optimization(6e-5, 1.0, 0.0, 0),
}
ENCODERS = ("segformer.", "backbone.")
"""How the names of the encoders' parameters begin."""
PATCH = 14
OURS = Optimization(1.5e-4, 10.0, 0.05, 60)
"""Of our CamVid recipes, which also have layer-wise decay."""


def segformer(given: argparse.Namespace, num_classes: int) -> Any:
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


def upernet(given: argparse.Namespace, num_classes: int) -> Any:
    """UPerNet on a ViT-S/14 of 518x518 pixels, with the heads of the library's defaults."""
    from transformers import Dinov2Config, UperNetConfig, UperNetForSemanticSegmentation

    width, heads, depth = (32, 2, 4) if given.tiny else (384, 6, 12)
    encoder = Dinov2Config(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        image_size=518,
        patch_size=PATCH,
        out_features=[f"stage{depth * part // 4}" for part in (1, 2, 3, 4)],
    )
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=encoder, num_labels=num_classes, auxiliary_in_channels=width,
            hidden_size=32 if given.tiny else 512,
        )
    )  # fmt: skip
    if given.weights:
        state = dinov2_state(given.weights)
        state["embeddings.mask_token"] = torch.zeros(1, width)  # of pretraining
        model.backbone.load_state_dict(state)
    return model


def dinov2_state(path: str) -> dict[str, torch.Tensor]:
    """A file in timm's names -> transformers 5's; queries, keys and values in three matrices."""
    from safetensors.torch import load_file

    renamed = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "pos_embed": "embeddings.position_embeddings",
        "cls_token": "embeddings.cls_token",
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.o_proj",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    state = {}
    for name, value in load_file(path).items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        if name.startswith("norm."):
            state[f"layer{name}"] = value
        elif "attn.qkv" in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"attention.{part}_proj")] = third
        else:
            state[name] = value
    return state


def groups(model: Any, recipe: Optimization) -> list[dict[str, Any]]:
    """Encoder and head, each with and without weight decay."""
    found: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        factor = 1.0 if name.startswith(ENCODERS) else recipe.head_factor
        decay = 0.0 if parameter.ndim <= 1 else recipe.weight_decay
        found.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": recipe.lr * factor, "weight_decay": decay}
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
    recipe = OURS if given.optimizer == "ours" else RECIPES[given.model]
    optimizer = torch.optim.AdamW(groups(model, recipe))
    warm = min(recipe.warmup, given.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / (warm + 1), 1.0) * (1 - t / given.steps)
    )
    model.train()
    for step, (pixels, masks) in enumerate(batches, 1):
        x = normalised(pixels.to(device).permute(0, 3, 1, 2))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(pixel_values=x, labels=masks.to(device).long()).loss
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
    multiple = PATCH if given.model == "upernet" else 1  # its encoder drops parts of patches
    for path in images(given.data, "test"):
        picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        H, W = picture.shape[:2]
        pixels = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None]
        total: Any = 0
        for scale in scales:
            factor = int(given.short_side * scale) / min(H, W)
            size = [round(side * factor / multiple) * multiple for side in (H, W)]
            x = F.interpolate(normalised(pixels), size=size, mode="bilinear", antialias=factor < 1)
            for flip in (False,) if len(scales) == 1 else (False, True):
                logits = model(pixel_values=x.flip(-1) if flip else x).logits.float()
                logits = F.interpolate(logits, size=(H, W), mode="bilinear")
                total = total + (logits.flip(-1) if flip else logits).softmax(dim=1)
        save_labels(folder, path, total[0].argmax(dim=0).cpu().numpy().astype(np.uint8))


def main() -> None:
    given = arguments(__doc__ or "", model=tuple(RECIPES), optimizer=("own", "ours"))
    import transformers

    torch.manual_seed(given.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = {"segformer": segformer, "upernet": upernet}[given.model](
        given, len(classes_of(given.data)[0])
    ).to(device)
    timer = Timer()
    train(model, given, device, timer)
    if not given.no_test:
        test(model, given, device, given.out / "single_scale", (1.0,))
        if given.multi_scale:
            test(model, given, device, given.out / "multi_scale", SCALES)
    finish(given, f"transformers {transformers.__version__}", timer, model)


if __name__ == "__main__":
    main()
