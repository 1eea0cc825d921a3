"""Modern training of SETR on the paper's data sets and two more, and what such recipes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from setr.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig

FINE_TUNING = OptimConfig(
    name="adamw",
    lr=1.5e-4,
    head_lr_factor=10,
    neck_lr_factor=10,
    min_lr=0,
    weight_decay=0.05,
    layer_decay=0.75,
    warmup_steps=100,
)
"""Fine-tuning of self-supervised ViTs: heads at ten times the rate, layer-wise decay of it."""
_MODERN_CROPS = {"cityscapes": 768, "ade20k": 512, "pascal_context": 480, "voc": 512,
                 "coco_stuff": 512}  # fmt: skip


def modern_recipes() -> dict[str, tuple[Callable[[], Config], str]]:
    """Functions that build the settings, by recipe name, each with a one-line description."""
    titles = {"cityscapes": "Cityscapes", "ade20k": "ADE20K", "pascal_context": "Pascal Context",
              "voc": "VOC 2012", "coco_stuff": "COCO-Stuff"}  # fmt: skip
    kinds = (
        ("pup", "dinov2", "vit_base_patch14_dinov2", 14, "lvd142m"),
        ("mla", "dinov3", "vit_base_patch16_dinov3", 16, "lvd1689m"),
    )
    return {
        f"{dataset}_setr_{decoder}_base_{tag}_40k": (
            partial(_modern, dataset, decoder, encoder, patch, weights),
            f"ours: SETR-{decoder.upper()}, {encoder}, {title}, AdamW, 40k",
        )
        for dataset, title in titles.items()
        for decoder, tag, encoder, patch, weights in kinds
    }


def crop_windows(height: int, width: int) -> EvalConfig:
    """Windows of the crop size (paper section 4.1), 2/3 of it apart as in the authors' code."""
    return EvalConfig(window=(height, width), stride=(height * 2 // 3, width * 2 // 3))


def _modern(dataset: str, decoder: str, encoder: str, patch: int, weights: str) -> Config:
    """AdamW with layer-wise decay on a self-supervised ViT-B, 40k steps."""
    crop = -(-_MODERN_CROPS[dataset] // patch) * patch
    side = 1024 if dataset == "cityscapes" else crop
    return Config(
        model=ModelConfig(
            name=f"setr_{decoder}_base", encoder=encoder, pretrained=weights, drop_path=0.1
        ),
        data=DataConfig(
            root=f"data/{dataset}",
            labels=dataset,
            crop_size=(crop, crop),
            short_side=side,
            long_side=4 * side,
        ),
        optim=replace(FINE_TUNING, lr=1e-4, layer_decay=0.8, warmup_steps=1500),
        train=TrainConfig(
            steps=40_000, batch_size=8 if dataset == "cityscapes" else 16, eval_every=8000
        ),
        eval=crop_windows(crop, crop),
    )
