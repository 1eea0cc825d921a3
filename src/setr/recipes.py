"""Named experiments: functions that return a Config, described by their docstrings.

`setr train NAME` runs one; any field can be changed on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from setr.arguments.elsewhere_python import answers_keywords
from setr.arguments.typed import checked
from setr.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    replacing,
)
from setr.errors import UsageError
from setr.modern_recipes import FINE_TUNING, crop_windows, modern_recipes
from setr.paper import paper_config
from setr.paper_tables import describe, systems
from setr.published_recipes import published_recipes

_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
"""Of encoders, as mmsegmentation writes them (`vit-l`), and here."""
_RECIPES: dict[str, tuple[Callable[[], Config], str]] = {}
"""A function that builds the settings, and a one-line description, by recipe name."""


def _register(build: Callable[[], Config]) -> Callable[[], Config]:
    title, _, _ = (build.__doc__ or "").partition("\n")  # no text under `python -OO`
    _RECIPES[build.__name__] = build, title
    return build


@answers_keywords("recipe", lambda name: replacing(name, "use setr.recipe(NAME)."))
@checked
def recipe(name: str) -> Config:
    """The settings of a named recipe, writing to `runs/NAME`.

    Raises:
        SetrError: unknown name; similar ones are listed.
    """
    if name in systems():
        return replace(paper_config(systems()[name]), recipe=name, out=f"runs/{name}")
    if name not in _RECIPES:
        near = nearest_recipes(name)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise UsageError(f"recipe '{name}' is unknown{nearest} (`setr recipes` lists all)")
    build, _ = _RECIPES[name]
    return replace(build(), recipe=name, out=f"runs/{name}")


def nearest_recipes(name: str, words: int = 0) -> list[str]:
    """The recipes, at most three, whose names have most words of this one, then most letters.

    Args:
        words: how many they must have in common, as `setr`, `pup` and `160k`.
    """
    ours = name.lower().replace("-", "_")  # the names' style
    own = {_SIZES.get(word, word) for word in ours.split("_")}
    shared = {known: len(own & set(known.split("_"))) for known in list_recipes()}
    close = difflib.get_close_matches(ours, shared, len(shared), cutoff=0.3)
    by_letters = difflib.get_close_matches(ours, shared, len(shared), cutoff=0)
    near = [k for k in by_letters if shared[k] >= words and (k in close or shared[k] > 1)]
    return sorted(near, key=shared.__getitem__, reverse=True)[:3]


def list_recipes() -> dict[str, str]:
    """Recipe names with a one-line description; the paper's follow our own."""
    own = {name: title for name, (_, title) in _RECIPES.items()}
    return own | {name: describe(system) for name, system in systems().items()}


@_register
def demo() -> Config:
    """SETR-PUP from random weights on drawn street scenes; minutes on two CPU cores."""
    return Config(
        model=ModelConfig(name="setr_pup_nano", img_size=128, channels=32),
        data=DataConfig(root="scenes", crop_size=(128, 128), scale_range=(0.75, 1.5), workers=1),
        optim=OptimConfig(
            name="adamw",
            lr=3e-3,
            head_lr_factor=1,
            min_lr=0,
            weight_decay=0.05,
            warmup_steps=10,
            clip_grad=1.0,
        ),
        train=TrainConfig(
            steps=200,
            batch_size=8,
            ema=0.98,
            class_weights="sqrt_median_frequency",
            log_every=10,
            save_every=100,
        ),
        eval=EvalConfig(multi_scale=True),
    )


@_register
def finetune() -> Config:
    """SETR-MLA, DINOv2 ViT-S/14, for your own data set; one GPU with 8 GB, or (slowly) a CPU.

    Give the data with `--data.root`, pretrained weights with `--model.pretrained lvd142m` (timm
    downloads them) or a file.
    """
    return Config(
        model=ModelConfig(
            name="setr_mla_small", encoder="vit_small_patch14_dinov2", align_corners=False
        ),
        data=DataConfig(root="data", crop_size=(448, 448)),
        optim=FINE_TUNING,
        train=TrainConfig(
            steps=4000,
            batch_size=8,
            ema=0.999,
            class_weights="sqrt_median_frequency",
            eval_every=500,
        ),
    )


@_register
def scratch() -> Config:
    """SETR-PUP, a ViT of 6 blocks from random weights, for your own data set; minutes on a CPU.

    For images that pretrained weights do not suit, or where none can be had. Give the data with
    `--data.root`. With `--model.pretrained`, use `finetune`.
    """
    config = demo()
    return replace(
        config,
        data=replace(config.data, root="data", crop_size=(192, 192), workers=-1),
        optim=replace(config.optim, warmup_steps=50),
        train=replace(config.train, steps=2000, ema=0.99, log_every=50, save_every=500),
        eval=EvalConfig(),
    )


def _camvid(decoder: str) -> Config:
    """CamVid with a DINOv2 ViT-S/14 on images enlarged to 546x728, to resolve thin objects.

    Tested in windows of the crop size, which scores higher than whole images (docs/results.md).
    """
    return Config(
        model=ModelConfig(
            name=f"setr_{decoder}_small", encoder="vit_small_patch14_dinov2", align_corners=False
        ),
        data=DataConfig(
            root="data/camvid",
            labels="camvid",
            crop_size=(378, 504),
            short_side=546,
            scale_range=(0.7, 1.3),
            max_class_share=1.0,
        ),
        optim=replace(FINE_TUNING, warmup_steps=200),
        train=TrainConfig(
            steps=8000,
            batch_size=8,
            ema=0.999,
            class_weights="sqrt_median_frequency",
            eval_every=2000,
        ),
        eval=replace(crop_windows(378, 504), multi_scale=True),
    )


def _camvid_cpu(decoder: str) -> Config:
    """`_camvid` within 45 minutes on two cores with bf16.

    Fewer steps, without photometric distortion and auxiliary heads; see docs/decisions.md.
    """
    config = _camvid(decoder)
    return replace(
        config,
        model=replace(config.model, aux=False),
        data=replace(config.data, photometric=False, workers=1),
        optim=replace(config.optim, warmup_steps=60),
        train=replace(
            config.train, steps=1200, batch_size=4, ema=0.99, eval_every=0, save_every=250
        ),
        eval=replace(config.eval, multi_scale=False),
    )


@_register
def camvid_setr_naive_small() -> Config:
    """SETR-Naive, DINOv2 ViT-S/14, CamVid; for a GPU."""
    return _camvid("naive")


@_register
def camvid_setr_pup_small() -> Config:
    """SETR-PUP, DINOv2 ViT-S/14, CamVid; for a GPU."""
    return _camvid("pup")


@_register
def camvid_setr_mla_small() -> Config:
    """SETR-MLA, DINOv2 ViT-S/14, CamVid; for a GPU."""
    return _camvid("mla")


@_register
def camvid_setr_naive_small_cpu() -> Config:
    """SETR-Naive, DINOv2 ViT-S/14, CamVid; fits 45 minutes on two cores with bf16."""
    return _camvid_cpu("naive")


@_register
def camvid_setr_pup_small_cpu() -> Config:
    """SETR-PUP of 128 channels, DINOv2 ViT-S/14, CamVid; fits 45 minutes on two cores with bf16."""
    config = _camvid_cpu("pup")
    return replace(
        config,
        model=replace(config.model, channels=128),
        train=replace(config.train, steps=1050),  # a step takes a quarter longer than with MLA
    )


@_register
def camvid_setr_mla_small_cpu() -> Config:
    """SETR-MLA, DINOv2 ViT-S/14, CamVid; fits 45 minutes on two cores with bf16."""
    return _camvid_cpu("mla")


def _camvid_quarter(steps: int) -> Config:
    """SETR-MLA on CamVid within 15 minutes on two cores, for training part of the weights."""
    config = _camvid_cpu("mla")
    return replace(
        config,
        data=replace(config.data, crop_size=(308, 420)),
        train=replace(config.train, steps=steps),
        eval=crop_windows(308, 420),
    )


@_register
def camvid_setr_mla_small_frozen_cpu() -> Config:
    """Heads only, on cached features of DINOv2 ViT-S/14, CamVid; 15 minutes on two CPU cores."""
    config = _camvid_quarter(500)
    return replace(
        config,
        model=replace(config.model, freeze=-1),
        data=replace(config.data, crop_size=(462, 616), short_side=462),
        train=replace(config.train, cache_features="flip"),
        eval=EvalConfig(),  # trained on whole images
    )


@_register
def camvid_setr_mla_small_last4_cpu() -> Config:
    """Heads and the last four blocks of DINOv2 ViT-S/14, CamVid; 15 minutes on two CPU cores."""
    config = _camvid_quarter(500)
    return replace(config, model=replace(config.model, freeze=8))


@_register
def camvid_setr_mla_small_lora_cpu() -> Config:
    """Heads and LoRA of DINOv2 ViT-S/14, CamVid; 15 minutes on two CPU cores."""
    config = _camvid_quarter(400)
    return replace(
        config,
        model=replace(config.model, lora_rank=8),
        optim=replace(config.optim, lr=5e-4, head_lr_factor=3, neck_lr_factor=3, layer_decay=1.0),
    )


# --- other plain-ViT models as published, and modern training of SETR -----------------------------

_RECIPES.update(published_recipes())
_RECIPES.update(modern_recipes())
