"""Losses, gradients and training runs on a GPU beside the CPU's; checks of `gpu_check.py`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from gpu_bench import HALF, Bench, Figures, error, require
from safetensors.torch import load_file
from torch import Tensor

from setr import create_model
from setr.data import scenes
from setr.inference import normalize
from setr.layers.precision import autocast_dtype
from setr.losses import count_weight, segmentation_loss, upsample_cross_entropy


def loss(bench: Bench) -> Figures:
    """The fused loss and its gradient beside fp64 on the CPU."""
    found = {}
    K, side = (7, 4) if bench.tiny else (150, 32)
    for factor, K_, dtype in ((16, K, "float32"), (2, K, "float32"), (4, 19, "bfloat16"),
                              (4, 11, "float16"), (13.7, 2, "float32")):  # fmt: skip
        for weighted in (False, True):
            size = (round(side * factor), round((side + 3) * factor))
            x = 3 * torch.randn(2, K_, side, side + 3)
            x = x.to(getattr(torch, dtype))
            target = torch.randint(K_, (2, size[0] - 1, size[1] - 1), dtype=torch.uint8)
            target[:, :3] = 255
            weight = torch.rand(K_) + 0.5 if weighted else None
            exact = x.double().requires_grad_()
            expected = upsample_cross_entropy(exact, target, size, weight=weight)
            expected.backward()
            ours = x.to(bench.device).requires_grad_()
            on = weight if weight is None else weight.to(bench.device)
            total = upsample_cross_entropy(ours, target.to(bench.device), size, weight=on)
            total.backward()
            apart = error(ours.grad, exact.grad), error(total, expected)
            limit = 1e-4 if dtype == "float32" else HALF
            name = f"x{factor} K={K_} {dtype}{' weighted' if weighted else ''}"
            require(apart[0] < limit and apart[1] < 1e-4, f"{name}: errors {apart}")
            found[name] = apart[0]
    ids = torch.randint(9, (2, 50, 60), dtype=torch.uint8)
    ids[:, 7] = 255
    weight = torch.rand(9)
    there = count_weight(ids.to(bench.device), weight.to(bench.device))
    require(error(there, count_weight(ids, weight)) < 1e-5, "count_weight differs")
    return {"gradient_error": max(found.values()), "cases": found}


def gradients(model: Any, images: Tensor, target: Tensor, precision: str) -> dict[str, Tensor]:
    """Of one step on the device the model is on."""
    device = next(model.parameters()).device
    dtype = autocast_dtype(precision, device)  # type: ignore[arg-type]
    model.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        output = model(normalize(images.to(device), (0.5,) * 3, (0.2,) * 3), with_aux=True)
    scale = 1024.0 if precision == "fp16" else 1.0
    (scale * segmentation_loss(output, target.to(device))["loss"]).backward()
    return {name: p.grad.float() / scale for name, p in model.named_parameters()}


def step(bench: Bench) -> Figures:
    """Gradients of every decoder beside the CPU's, as the norm of all parameters together."""
    found = {}
    torch.backends.cudnn.allow_tf32 = False  # ten bits of precision where fp32 is asked for
    side = 64 if bench.tiny else 128
    images = torch.randint(256, (2, side, side + 10, 3), dtype=torch.uint8)
    target = torch.randint(9, (2, side, side + 10), dtype=torch.uint8)
    for name in ("setr_naive_nano", "setr_pup_nano", "setr_mla_nano"):
        torch.manual_seed(0)
        model = create_model(name, num_classes=9, img_size=64, channels=32).train()
        expected = gradients(model, images, target, "fp32")
        model.to(bench.device)
        for precision in ("fp32", *bench.halves()):
            ours = gradients(model, images, target, precision)
            flat = [torch.cat([g[k].cpu().flatten() for k in expected]) for g in (ours, expected)]
            found[f"{name} {precision}"] = apart = error(*flat)
            limit = 0.001 if precision == "fp32" else 0.15
            require(apart < limit, f"{name} {precision}: gradients are {apart:.3g} apart")
    torch.backends.cudnn.allow_tf32 = True
    return found


def scenes_folder(bench: Bench) -> Path:
    """Drawn scenes as a data set."""
    from setr.images import encode_png

    root = bench.folder / "data"
    if root.is_dir():
        return root
    for split, count in (("train", 8), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            for kind, array in zip(("images", "labels"), scenes.draw(split, i, size=96),
                                   strict=True):  # fmt: skip
                (root / kind / split / f"{i}.png").write_bytes(encode_png(array))
    names = ", ".join(scenes.CLASSES)
    (root / "data.yaml").write_text(f"path: .\nclasses: [{names}]\nignore: 255\n")
    return root


def run(
    bench: Bench, name: str, decoder: str = "mla", model_name: str | None = None, **changes: Any
) -> tuple[Path, Figures]:
    """Train a tiny model by `setr.train`; the folder of the run, and its last logged figures."""
    import setr
    from setr.recipes import recipe

    config, out = recipe("finetune"), bench.folder / name
    resume, dropped = changes.pop("resume", False), changes.pop("drop_path", 0.0)
    encoder = changes.pop("encoder", None)
    data = {"root": str(scenes_folder(bench)), "crop_size": (64, 64), "short_side": 64,
            "workers": 0 if bench.tiny else 2}  # fmt: skip
    train = {"steps": 4, "eval_every": 0, "save_every": 2, "batch_size": 2, "log_every": 1,
             "device": str(bench.device), **changes}  # fmt: skip
    model = {"name": model_name or f"setr_{decoder}_nano", "encoder": encoder, "pretrained": None,
             "channels": 32 if model_name is None else None, "img_size": 64, "drop_path": dropped,
             "freeze": -1 if "cache_features" in changes else 0}  # fmt: skip
    config = dataclasses.replace(
        config,
        out=str(out),
        data=dataclasses.replace(config.data, **data),
        train=dataclasses.replace(config.train, **train),
        model=dataclasses.replace(config.model, **model),
    )
    setr.train(config, resume=resume, overwrite=not resume)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return out, next(line for line in reversed(lines) if "main" in line)


ROADS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "pup": {"decoder": "pup"},
    "checkpointing": {"grad_checkpointing": True, "accumulate": 2},
    "average, weights": {"ema": 0.9, "class_weights": "sqrt_median_frequency"},
    "lovasz": {"loss": "lovasz"},
    "ohem": {"loss": "ohem"},
    "features": {"cache_features": "once"},
    "profile": {"profile": 1},
}


def train(bench: Bench) -> Figures:
    """Every road of a training run, and whether a resumed run has the same weights."""
    roads = dict(ROADS)
    for absent in {"bf16", "fp16"} - set(bench.halves()):
        del roads[absent]
    if bench.tiny:
        roads = {name: roads[name] for name in ("fp32", "average, weights")}
    found: Figures = {}
    for name, changes in roads.items():
        began = time.monotonic()
        _, last = run(bench, f"run {name}", **changes)
        require(last["loss"] > 0, f"{name}: {last}")
        found[name] = {"loss": last["loss"], "seconds": round(time.monotonic() - began, 1)}
        print(f"  {name}: {found[name]}", flush=True)
    whole, _ = run(bench, "whole")
    part = bench.folder / "part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(whole, part)
    shutil.rmtree(part / LAST)
    run(bench, "part", resume=True)
    a, b = (_state(folder / LAST) for folder in (whole, part))
    apart = max(error(a[k].float(), b[k].float()) for k in a if k.startswith("model/"))
    require(apart < 0.01, f"a resumed run is {apart:.3g} apart")
    found["resumed"] = {"apart": apart}  # 0 where the device's sums are the same each time
    return found


def train_compiled(bench: Bench) -> Figures:
    """A training run through `torch.compile`, which takes most of its time; none on a CPU."""
    return run(bench, "compiled", compile=True)[1] if bench.cuda else {}


def graph(bench: Bench) -> Figures:
    """Weights and moments of a run through a CUDA graph, random depth too, beside one without."""
    found: Figures = {}
    for decoder in ("pup", "mla"):
        states = [
            _state(run(bench, f"{decoder} {on}", decoder, cuda_graph=on, drop_path=0.2)[0] / LAST)
            for on in (True, False)
        ]
        for part in ("model/", "optimizer/"):
            flat = [torch.cat([v.float().flatten() for k, v in sorted(state.items())
                               if k.startswith(part)]) for state in states]  # fmt: skip
            found[f"{decoder} {part}"] = apart = error(*flat)
            require(apart < HALF, f"{decoder}: {part} are {apart:.3g} apart")
    return found


LAST = Path("last", "step-00000004")


def _state(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors
