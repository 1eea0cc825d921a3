"""SETR-PUP by mmsegmentation 1.2.2 with its own recipe, on the same images, steps and crop as ours.

    PEER/bin/python benchmarks/camvid/rival_mmseg.py --data CAMVID --out runs/mmseg \
        --weights dinov2_vits14.safetensors --steps 600 --batch-size 8 --short-side 360 \
        --crop 252 336

The recipe is `setr_vit-l_pup_8xb1-80k_cityscapes-768x768`: SGD 0.01, heads ten times faster,
polynomial decay, windows of the crop with a stride of two thirds. With `--optimizer adamw`, the
optimiser and learning rates of our CamVid recipes. The encoder is a ViT-S/14; its layer scales are
folded into the projections they follow, which computes the same function.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rival import SCALES, Timer, arguments, classes_of, finish, images, save_labels

OPTIMIZERS = {
    "sgd": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0},
    "adamw": {"type": "AdamW", "lr": 1.5e-4, "weight_decay": 0.05},
}
"""That of its recipe, and that of our CamVid recipes, which also have layer-wise decay."""
WARMUP = 60
"""Steps of warm-up for AdamW, as in our recipes for CPUs."""


def import_mmseg() -> None:
    """Import the package without mmcv's compiled operators, none of which SETR calls."""

    class NoOps(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (torch.nn.Module,), {})

    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        sys.modules["mmcv.ops"] = NoOps("mmcv.ops")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # of another torch; mmengine asks for its version alone
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    sys.modules["timm"] = None  # type: ignore[assignment]  # optional there, and unused here
    from mmseg.utils import register_all_modules

    register_all_modules()


def head(index: int, num_convs: int, num_classes: int, width: int, **changes: Any) -> dict:
    """One of the four up-sampling heads."""
    return {
        "type": "SETRUPHead",
        "in_channels": width,
        "channels": 256,
        "in_index": index,
        "num_classes": num_classes,
        "num_convs": num_convs,
        "kernel_size": 3,
        "up_scale": 4,
        "dropout_ratio": 0,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4, "avg_non_ignore": True},
        **changes,
    }


def configuration(given: argparse.Namespace) -> dict[str, Any]:
    """The settings of mmengine's runner."""
    names, ignore = classes_of(given.data)
    K, crop = len(names), tuple(given.crop)
    width, depth, heads = (32, 4, 2) if given.tiny else (384, 12, 6)
    taps = (0, 1, 2, 3) if given.tiny else (4, 7, 9, 11)  # the blocks ours reads, from 0
    common = {"ignore_index": ignore}
    main_loss = {"type": "CrossEntropyLoss", "loss_weight": 1.0, "avg_non_ignore": True}
    short = (4 * given.short_side, given.short_side)
    schedule = {"begin": 0, "end": given.steps, "by_epoch": False}
    warmup = []
    if given.optimizer == "adamw":
        schedule["begin"] = WARMUP
        warmup = [{"type": "LinearLR", "start_factor": 1e-3, "end": WARMUP, "by_epoch": False}]
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": short, "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": crop, "cat_max_ratio": 0.75, **common},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    return {
        "default_scope": "mmseg",
        "work_dir": str(given.out / "mmengine"),
        "randomness": {"seed": given.seed},
        "model": {
            "type": "EncoderDecoder",
            "data_preprocessor": {
                "type": "SegDataPreProcessor",
                "mean": [123.675, 116.28, 103.53],
                "std": [58.395, 57.12, 57.375],
                "bgr_to_rgb": True,
                "pad_val": 0,
                "seg_pad_val": ignore,
                "size": crop,
            },
            "backbone": {
                "type": "VisionTransformer",
                "img_size": (518, 518),
                "patch_size": 14,
                "patch_bias": True,
                "embed_dims": width,
                "num_layers": depth,
                "num_heads": heads,
                "out_indices": taps,
                "norm_cfg": {"type": "LN", "eps": 1e-6},
                "interpolate_mode": "bilinear",
            },
            "decode_head": head(3, 4, K, width, up_scale=2, loss_decode=main_loss, **common),
            "auxiliary_head": [head(i, 2, K, width, **common) for i in range(3)],
            "test_cfg": {
                "mode": "slide",
                "crop_size": crop,
                "stride": tuple(side * 2 // 3 for side in crop),
            },
        },
        "train_dataloader": {
            "batch_size": given.batch_size,
            "num_workers": given.workers,
            "persistent_workers": given.workers > 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": {
                "type": "BaseSegDataset",
                "data_root": str(given.data),
                "data_prefix": {"img_path": "images/train", "seg_map_path": "labels/train"},
                "img_suffix": images(given.data, "train")[0].suffix,
                "metainfo": {"classes": names},
                "pipeline": pipeline,
                **common,
            },
        },
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": given.steps},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": OPTIMIZERS[given.optimizer],
            "paramwise_cfg": {"custom_keys": {"head": {"lr_mult": 10.0}}},
        },
        "param_scheduler": [
            *warmup,
            {"type": "PolyLR", "eta_min": 0.0 if warmup else 1e-4, "power": 0.9, **schedule},
        ],
        "default_hooks": {"checkpoint": None, "logger": {"type": "LoggerHook", "interval": 50}},
    }  # fmt: skip


def encoder_state(path: str) -> dict[str, torch.Tensor]:
    """A DINOv2 file in timm's names -> the port's names, layer scales folded in."""
    from safetensors.torch import load_file

    given = {name: value.float() for name, value in load_file(path).items()}
    state = {
        "cls_token": given["cls_token"],
        "pos_embed": given["pos_embed"],
        "patch_embed.projection.weight": given["patch_embed.proj.weight"],
        "patch_embed.projection.bias": given["patch_embed.proj.bias"],
    }
    parts = {
        "norm1": ("ln1", None),
        "norm2": ("ln2", None),
        "attn.proj": ("attn.attn.out_proj", "ls1"),
        "mlp.fc1": ("ffn.layers.0.0", None),
        "mlp.fc2": ("ffn.layers.1", "ls2"),
    }
    depth = 1 + max(int(name.split(".")[1]) for name in given if name.startswith("blocks."))
    for i in range(depth):
        block, layer = f"blocks.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            state[f"{layer}.attn.attn.in_proj_{kind}"] = given[f"{block}.attn.qkv.{kind}"]
            for ours, (theirs, scale) in parts.items():
                value = given[f"{block}.{ours}.{kind}"]
                if scale:
                    gamma = given[f"{block}.{scale}.gamma"]
                    value = value * (gamma[:, None] if kind == "weight" else gamma)
                state[f"{layer}.{theirs}.{kind}"] = value
    return state


@torch.no_grad()
def test(model: Any, given: argparse.Namespace, folder: Path, scales: tuple[float, ...]) -> None:
    """Write label images of the test split, averaging probabilities over scales and mirroring."""
    from mmengine.dataset import Compose

    flips = (0.0,) if len(scales) == 1 else (0.0, 1.0)
    views = [
        Compose(
            [
                {"type": "LoadImageFromFile"},
                {
                    "type": "Resize",
                    "scale": (4 * int(given.short_side * s), int(given.short_side * s)),
                    "keep_ratio": True,
                },
                {"type": "RandomFlip", "prob": flip},
                {"type": "PackSegInputs"},
            ]
        )
        for s in scales
        for flip in flips
    ]
    model.eval()
    for path in images(given.data, "test"):
        total: Any = 0
        for view in views:
            sample = view({"img_path": str(path)})
            batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
            total = total + model.test_step(batch)[0].seg_logits.data.softmax(dim=0)
        save_labels(folder, path, total.argmax(dim=0).cpu().numpy().astype(np.uint8))


def main() -> None:
    given = arguments(__doc__ or "", optimizer=tuple(OPTIMIZERS))
    import_mmseg()
    import mmseg
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    runner = Runner.from_cfg(Config(configuration(given)))
    if given.weights:
        runner.model.init_weights()
        found = runner.model.backbone.load_state_dict(encoder_state(given.weights), strict=True)
        print(f"{given.weights}: {found}")
    timer = Timer()

    class Clocked(Hook):
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            timer.step()

    runner.register_hook(Clocked(), priority="LOWEST")
    runner.train()
    if not given.no_test:
        test(runner.model, given, given.out / "single_scale", (1.0,))
        if given.multi_scale:
            test(runner.model, given, given.out / "multi_scale", SCALES)
    finish(given, f"mmsegmentation {mmseg.__version__}", timer, runner.model)


if __name__ == "__main__":
    main()
