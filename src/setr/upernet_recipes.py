"""UPerNet on ViT and DeiT as mmsegmentation trains it on ADE20K (1.2.2, configs/vit)."""

from __future__ import annotations

from functools import partial

from setr.arguments.choices import Neck
from setr.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

_PUBLISHED: dict[tuple[str, str, Neck, int], str] = {
    # encoder, size, neck, thousand steps: mmsegmentation's mIoU (single-scale; six scales and flip)
    ("vit", "base", "mln", 80): "47.71 SS, 49.51 MS",
    ("vit", "base", "mln", 160): "46.75 SS, 48.46 MS",
    ("vit", "base", "ln_mln", 160): "47.73 SS, 49.95 MS",
    ("deit", "small", "none", 80): "42.96 SS, 43.79 MS",
    ("deit", "small", "none", 160): "42.87 SS, 43.79 MS",
    ("deit", "small", "mln", 160): "43.82 SS, 45.07 MS",
    ("deit", "small", "ln_mln", 160): "43.52 SS, 45.01 MS",
    ("deit", "base", "none", 80): "45.24 SS, 46.73 MS",
    ("deit", "base", "none", 160): "45.36 SS, 47.16 MS",
    ("deit", "base", "mln", 160): "45.46 SS, 47.16 MS",
    ("deit", "base", "ln_mln", 160): "45.37 SS, 47.23 MS",
}


def _upernet(encoder: str, size: str, neck: Neck, steps: int) -> Config:
    """UPerNet on ADE20K as in mmsegmentation's configs/vit.

    Except that norms and biases have no weight decay here; theirs have, though their comment says
    otherwise for the norms. Their file for DeiT-S without a neck named 160k inherits 80k steps;
    here it has 160k.
    """
    return Config(
        model=ModelConfig(
            name=f"upernet_{size}",
            encoder=f"{encoder}_{size}_patch16_224",
            pretrained="orig_in21k_ft_in1k" if encoder == "vit" else "fb_in1k",
            img_size=512,
            neck=neck,
            drop_path=0.0 if (encoder, neck) == ("vit", "mln") else 0.1,
            pos_interp="bicubic_plain",
        ),
        data=DataConfig(
            root="data/ade20k",
            labels="ade20k",
            crop_size=(512, 512),
            short_side=512,
            long_side=2048,
        ),
        optim=OptimConfig(
            name="adamw",
            lr=6e-5,
            head_lr_factor=1,
            min_lr=0,
            weight_decay=0.01,
            power=1.0,
            warmup_steps=1500,
        ),
        train=TrainConfig(steps=1000 * steps, batch_size=16, eval_every=16_000, loss_norm="all"),
    )


def upernet_recipes() -> dict[str, tuple[partial[Config], str]]:
    """Functions that build the settings, by recipe name, each with a one-line description."""
    recipes = {}
    for (encoder, size, neck, steps), published in _PUBLISHED.items():
        suffix = "" if neck == "none" else f"_{neck}"
        title = {"vit": "ViT", "deit": "DeiT"}[encoder]
        recipes[f"ade20k_{encoder}_upernet_{size}{suffix}_{steps}k"] = (
            partial(_upernet, encoder, size, neck, steps),
            f"UPerNet, {title}, neck {neck}; mmsegmentation: mIoU {published}",
        )
    return recipes
