"""Other plain-ViT models as published: Segmenter, DPT and UPerNet of mmsegmentation, and EoMT.

Sources: mmsegmentation 1.2.2 (configs/segmenter, dpt, vit, beit and mae) and tue-mps/eomt
(configs/dinov2 and configs/dinov3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from setr.arguments.choices import Neck
from setr.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig

_SEGMENTER = {  # size: crop, mmsegmentation's mIoU (single-scale, six scales with flip)
    "tiny": (512, "39.99 SS, 40.83 MS"),
    "small": (512, "46.19 SS, 47.85 MS"),
    "base": (512, "49.60 SS, 51.07 MS"),
    "large": (640, "52.16 SS, 53.65 MS"),
}
_UPERNET: dict[tuple[str, str, Neck, int], str] = {
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
_PRETRAINED_BY_MASKING: dict[str, tuple[str, str]] = {
    # recipe: size, mmsegmentation's mIoU (single-scale; six scales and flip)
    "beit_upernet_base": ("base", "53.08 SS, 53.84 MS"),
    "beit_upernet_large": ("large", "56.33 SS, 56.84 MS"),
    "mae_upernet_base": ("base", "48.13 SS, 48.70 MS"),
}

_ADAMW = OptimConfig(
    name="adamw",
    lr=6e-5,
    head_lr_factor=1,
    min_lr=0,
    weight_decay=0.01,
    power=1,
    warmup_steps=1500,
)
"""mmsegmentation's AdamW for DPT and UPerNet, without weight decay of norms and biases."""


def published_recipes() -> dict[str, tuple[Callable[[], Config], str]]:
    """Functions that build the settings, by recipe name, each with a one-line description."""
    recipes: dict[str, tuple[Callable[[], Config], str]] = {
        f"ade20k_segmenter_{size}_160k": (
            partial(_segmenter, size),
            f"Segmenter; mmsegmentation: mIoU {published}",
        )
        for size, (_, published) in _SEGMENTER.items()
    }
    recipes["ade20k_dpt_base_160k"] = _dpt, "DPT; mmsegmentation: mIoU 46.97 SS, 48.34 MS"
    for (encoder, size, neck, steps), published in _UPERNET.items():
        suffix = "" if neck == "none" else f"_{neck}"
        title = {"vit": "ViT", "deit": "DeiT"}[encoder]
        recipes[f"ade20k_{encoder}_upernet_{size}{suffix}_{steps}k"] = (
            partial(_upernet, encoder, size, neck, steps),
            f"UPerNet, {title}, neck {neck}; mmsegmentation: mIoU {published}",
        )
    for name, (size, published) in _PRETRAINED_BY_MASKING.items():
        kind = name.partition("_")[0]
        recipes[f"ade20k_{name}_160k"] = (
            partial(_masked, kind, size),
            f"UPerNet, {kind.replace('beit', 'BEiT').replace('mae', 'MAE')}; mmsegmentation: "
            f"mIoU {published}",
        )
    recipes["ade20k_eomt_large_39k"] = (
        partial(_eomt, "ade20k", 512, 39_153, 4 / 3),
        "EoMT-L, DINOv2 ViT-L, ADE20K; its authors: mIoU 58.4",
    )
    recipes["ade20k_eomt_large_dinov3_20k"] = (
        _eomt_dinov3,
        "EoMT-L, DINOv3 ViT-L, ADE20K; its authors: mIoU 59.5",
    )
    recipes["cityscapes_eomt_large_20k"] = (
        partial(_eomt, "cityscapes", 1024, 19_902, 2),
        "EoMT-L, DINOv2 ViT-L, Cityscapes; its authors: mIoU 84.2",
    )
    return recipes


def _ade20k(crop: int) -> DataConfig:
    """ADE20K as in mmsegmentation: square crops of images whose short side is the crop's."""
    return DataConfig(
        root="data/ade20k",
        labels="ade20k",
        crop_size=(crop, crop),
        short_side=crop,
        long_side=4 * crop,
    )


def _segmenter(size: str) -> Config:
    """Segmenter on ADE20K as in mmsegmentation's configs/segmenter.

    Except that the decoder has no drop path; theirs has the encoder's last rate in its second
    block.
    """
    crop, _ = _SEGMENTER[size]
    return Config(
        model=ModelConfig(
            name=f"segmenter_{size}",
            pretrained="augreg_in21k_ft_in1k",
            img_size=crop,
            drop_path=0.1,
            pos_interp="bicubic_plain",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        data=_ade20k(crop),
        optim=OptimConfig(lr=1e-3, head_lr_factor=1),
        train=TrainConfig(steps=160_000, batch_size=8, eval_every=16_000, loss_norm="all"),
        eval=EvalConfig(window=(crop, crop), stride=(crop - 32, crop - 32)),
    )


def _dpt() -> Config:
    """DPT on ADE20K as in mmsegmentation's configs/dpt, but norms and biases have no weight decay.

    The encoder keeps the position embeddings of 224x224 pixels.
    """
    return Config(
        model=ModelConfig(
            name="dpt_base",
            encoder="vit_base_patch16_224",
            pretrained="orig_in21k_ft_in1k",
            img_size=224,
            pos_interp="bicubic_plain",
            aux=False,
        ),
        data=_ade20k(512),
        optim=_ADAMW,
        train=TrainConfig(steps=160_000, batch_size=16, eval_every=16_000, loss_norm="all"),
    )


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
        data=_ade20k(512),
        optim=_ADAMW,
        train=TrainConfig(steps=1000 * steps, batch_size=16, eval_every=16_000, loss_norm="all"),
    )


def _masked(kind: str, size: str) -> Config:
    """UPerNet on BEiT or MAE on ADE20K as in mmsegmentation's configs/beit and configs/mae.

    Except that norms and biases have no weight decay here, nor have position biases, and that MAE
    keeps its plain encoder: theirs adds position biases of 0 and layer scales of 1 to be trained.
    Their BEiT-L accumulates two batches of 8; here it has one of 16.
    """
    beit, large = kind == "beit", size == "large"
    crop = 640 if beit else 512
    rate, decay = (2e-5 if large else 3e-5, 0.95 if large else 0.9) if beit else (1e-4, 0.65)
    return Config(
        model=ModelConfig(
            name=f"upernet_{size}",
            encoder=f"{'beit' if beit else 'vit'}_{size}_patch16_224",
            pretrained="in22k_ft_in22k" if beit else "mae",
            img_size=crop,
            taps=(8, 12, 16, 24) if large else (4, 6, 8, 12),
            channels=1024 if large else 768,
            neck="feature2pyramid",
            drop_path=0.2 if large else 0.1,
            pos_interp="bicubic" if beit else "bicubic_plain",
        ),
        data=_ade20k(crop),
        optim=replace(_ADAMW, lr=rate, weight_decay=0.05, layer_decay=decay),
        train=TrainConfig(steps=160_000, batch_size=16, eval_every=16_000, loss_norm="all"),
        eval=EvalConfig(window=(crop, crop), stride=(crop * 2 // 3, crop * 2 // 3)),
    )


def _eomt(dataset: str, crop: int, steps: int, aspect: float) -> Config:
    """EoMT-L on DINOv2 as in its authors' configs/dinov2, with a single warm-up for all weights.

    Their training images get a long side of 0.5 to 2 crops (torchvision's ScaleJitter), their test
    images a short side of one crop. Here both are scaled by the short side, so the range is divided
    by the images' aspect ratio: 2 in Cityscapes, mostly 4:3 in ADE20K.
    """
    return Config(
        model=ModelConfig(name="eomt_large", pretrained="lvd142m", img_size=crop),
        data=DataConfig(
            root=f"data/{dataset}",
            labels=dataset,
            crop_size=(crop, crop),
            short_side=crop,
            scale_range=(0.5 / aspect, 2 / aspect),
            max_class_share=1.0,
        ),
        # their last block has the heads' rate, 1e-4; here it has one step of layer-wise decay,
        # and the stem one step more than the first block, whose rate it has there
        optim=OptimConfig(
            name="adamw",
            lr=1.25e-4,
            head_lr_factor=0.8,
            min_lr=0,
            weight_decay=0.05,
            decay_norms=True,
            layer_decay=0.8,
            warmup_steps=500,
            clip_grad=0.01,
        ),
        train=TrainConfig(steps=steps, batch_size=16, eval_every=steps // 6),
        eval=EvalConfig(window=(crop, crop)),
    )


def _eomt_dinov3() -> Config:
    """EoMT-L on DINOv3 as in its authors' configs/dinov3/ade20k/semantic/eomt_large_512.yaml.

    16 epochs, and a tenth of the heads' rate for the encoder. Except that here the encoder warms up
    with the heads, not after them; its last four blocks have its own rate, not the heads'; masked
    attention is annealed in equal phases, theirs from the start in the first of the four blocks;
    and positions are not rescaled at random, as in transformers' DINOv3 while training. Their code
    as published never applies the tenth (`lr_mult`), because llrd's condition comes first.
    """
    config = _eomt("ade20k", 512, 20_208, 4 / 3)
    return replace(
        config,
        model=replace(config.model, encoder="vit_large_patch16_dinov3_qkvb", pretrained="lvd1689m"),
        optim=replace(config.optim, lr=2e-5, head_lr_factor=10, layer_decay=1, warmup_steps=2000),
    )
