"""Time and memory on a GPU, and where a training step waits for it; run by `gpu_check.py`."""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_bench import HALF, Bench, Figures, error, require
from torch import Tensor

from setr import create_model
from setr.inference import normalize, predict_mask
from setr.kernels.recorded import recorded
from setr.layers.precision import autocast_dtype
from setr.losses import count_weight, segmentation_loss
from setr.processes.machine import peak_bytes
from setr.protocols import Protocol
from setr.training.graphed import Graphed


def stepper(
    bench: Bench, decoder: str = "mla", *, compiled: bool = False, graph: bool = False
) -> tuple[Callable[[], object], Any]:
    """A training step of CamVid's recipe on noise, without the loader; and its model."""
    B, (H, W), K = (2, (28, 42), 5) if bench.tiny else (8, (378, 504), 11)
    size = "nano" if bench.tiny else "small"
    torch.manual_seed(0)
    with bench.device:
        model = create_model(f"setr_{decoder}_{size}", num_classes=K, img_size=518,
                             encoder="vit_tiny_patch16_224" if bench.tiny
                             else "vit_small_patch14_dinov2").train()  # fmt: skip
        images = torch.randint(256, (B, H, W, 3), dtype=torch.uint8)
        masks = torch.randint(K, (B, H, W), dtype=torch.uint8)
        weight = torch.rand(K)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    call = torch.compile(model) if compiled else model
    dtype = autocast_dtype("auto", bench.device)

    def backward(images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        with torch.autocast(bench.device.type, dtype, enabled=dtype is not None):
            output = call(images, with_aux=True)
        normalizer = count_weight(masks, weight)
        loss = segmentation_loss(output, masks, normalizer=normalizer, weight=weight)["loss"]
        loss.backward()
        return {"loss": loss.detach()}

    gradients = Graphed(backward, model) if graph else backward

    def work() -> None:
        gradients(normalize(images, (0.5,) * 3, (0.2,) * 3), masks)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work, model


def waits(bench: Bench) -> Figures:
    """Lines of a training step at which the processor waits for the GPU; none is the aim."""
    found = {}
    for decoder in ("pup", "mla"):
        work, _ = stepper(bench, decoder)
        for _ in range(2):
            work()
        bench.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if bench.cuda:
                torch.cuda.set_sync_debug_mode("warn")  # which itself warns that it is new
                caught.clear()
            work()
            if bench.cuda:
                torch.cuda.set_sync_debug_mode("default")
        lines = [
            f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchron" in str(w.message)
        ]
        found[decoder] = lines
    return found


def memory(bench: Bench) -> Figures:
    """The estimate of a step beside the peak of the allocator."""
    from setr.training.memory import step_memory

    if not bench.cuda:
        return {}
    found = {}
    for decoder in ("pup", "mla"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work, model = stepper(bench, decoder)
        for _ in range(2):
            work()
        peak = peak_bytes(bench.device) - before
        with torch.device("meta"):
            twin = type(model)(**model.arguments)
        B, size = (2, (28, 42)) if bench.tiny else (8, (378, 504))
        dtype = autocast_dtype("auto", bench.device)
        by_estimate = step_memory(twin, batch=B, size=size, device=bench.device, dtype=dtype,
                                  moments=2).total  # fmt: skip
        found[decoder] = {"peak_gb": peak / 1e9, "estimate_gb": by_estimate / 1e9,
                          "estimate_over_peak": round(by_estimate / peak, 3)}  # fmt: skip
        del work, model
    return found


def speed(bench: Bench) -> Figures:
    """Milliseconds of a training step, of them at work on the GPU, and its costliest kernels."""
    found: Figures = {}
    for decoder in bench.decoders:
        work, _ = stepper(bench, decoder)
        found[decoder] = bench.milliseconds(work)
        if bench.cuda:
            recorded, _ = stepper(bench, decoder, graph=True)
            found[f"{decoder}, CUDA graph"] = bench.milliseconds(recorded)
            torch.backends.cudnn.benchmark = True
            found[f"{decoder}, cudnn.benchmark"] = bench.milliseconds(work)
            torch.backends.cudnn.benchmark = False
            found[f"{decoder}, kernels"] = kernels(bench, work)
    return found


def compiled(bench: Bench) -> Figures:
    """Milliseconds of a compiled training step, and seconds until its first one is done."""
    found: Figures = {}
    for decoder in bench.decoders if bench.cuda else ():
        work, _ = stepper(bench, decoder, compiled=True)
        began = time.monotonic()
        work()
        bench.wait()
        found[f"{decoder}, first step in seconds"] = round(time.monotonic() - began, 1)
        found[decoder] = bench.milliseconds(work)
        found[f"{decoder}, kernels"] = kernels(bench, work)
    return found


def kernels(bench: Bench, work: Callable[[], object], shown: int = 40) -> Figures:
    """Milliseconds and launches of the costliest kernels of one step, and of all together."""
    with torch.profiler.profile() as profiler:
        work()
        bench.wait()
    events = [
        e
        for e in profiler.key_averages()
        if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation
    ]  # not the optimiser's range, whose kernels count themselves
    events.sort(key=lambda e: -e.self_device_time_total)
    return {
        "all": [round(sum(e.self_device_time_total for e in events) / 1e3, 3),
                sum(e.count for e in events)],
        **{e.key[:90]: [round(e.self_device_time_total / 1e3, 3), e.count] for e in events[:shown]},
    }  # fmt: skip


def layers(bench: Bench) -> Figures:
    """PUP's layer, upsampling and convolution forward and backward, in the forms there are."""
    from setr.layers.upsampled_convolution import conv_of_upsampled
    from setr.layers.upsampling import upsample, upsample_by_matrices

    found: Figures = {}
    B, C, sides = (1, 8, (4,)) if bench.tiny else (8, 256, (32, 64, 128))
    dtype = autocast_dtype("auto", bench.device) or torch.float32
    for side in sides:
        x = torch.randn(B, C, side, side, device=bench.device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        conv = torch.nn.Conv2d(C, C, 3, padding=1, device=bench.device, dtype=dtype)

        def by_matrices(x: Tensor) -> Tensor:
            return upsample_by_matrices(x, 2)

        forms: dict[str, Callable[[Tensor], Tensor]] = {
            "upsample": lambda x: upsample(x, 2),
            "upsample by matrices": by_matrices,
            "upsample, convolve": lambda x, conv=conv: conv(upsample(x, 2)),  # type: ignore[misc]
            "by matrices, convolve": lambda x, conv=conv: conv(by_matrices(x)),  # type: ignore[misc]
            "convolve, filter": lambda x, conv=conv: conv_of_upsampled(x, conv, 2),  # type: ignore[misc]
        }
        expected = {name: form(x) for name, form in forms.items()}
        apart = error(expected["upsample by matrices"], expected["upsample"])
        require(apart < HALF, f"matrices: {apart}")
        apart = error(expected["convolve, filter"], expected["upsample, convolve"])
        require(apart < HALF, f"filter: {apart}")
        slopes = {name: torch.randn_like(y) for name, y in expected.items()}
        del expected
        for name, form in forms.items():

            def work(form: Any = form, g: Tensor = slopes[name], x: Tensor = x) -> None:
                x.grad = None
                form(x).backward(g)

            found[f"{name} {side}"] = bench.milliseconds(work)
    return found


def images(bench: Bench) -> Figures:
    """Images per second, from normalised pixels to masks at 512x512 and 150 classes, in some ways.

    A recorded network starts its kernels together. All ways must give the masks of the plain one.
    """
    return _rates(bench, lambda model: {"plain": model})


def images_compiled(bench: Bench) -> Figures:
    """The same through `torch.compile`, whose compiling is not timed."""
    if not bench.cuda:
        return {}
    return _rates(bench, lambda model: {"plain": model, "compiled": _compiled(model)})


def _rates(bench: Bench, make: Callable[[Any], dict[str, Any]]) -> Figures:
    found: Figures = {}
    names, side, batches = ("setr_pup_base", "setr_pup_large", "eomt_large"), 512, (1, 16)
    if bench.tiny:
        names, side, batches = ("setr_pup_nano", "eomt_nano"), 64, (1, 2)
    for name in names:
        torch.manual_seed(0)
        with bench.device:
            model = create_model(name, num_classes=5 if bench.tiny else 150, img_size=side).eval()
        for batch in batches:
            x = torch.randn(batch, 3, side, side, device=bench.device)
            ways = make(model)
            ways |= {f"{kind}, recorded": recorded(way) for kind, way in ways.items()}
            masks = {}
            for kind, way in ways.items():
                for _ in range(3):  # the third is recorded
                    masks[kind] = _masks(bench, way, x)
                milliseconds = bench.milliseconds(functools.partial(_masks, bench, way, x))
                same = float((masks[kind] == masks["plain"]).float().mean())
                limit = 0.5 if "compiled" in kind else 0.9999  # random weights: near ties
                require(same > limit, f"{name} {kind}: {same:.4%} of the pixels are the same")
                found[f"{name} batch {batch}, {kind}"] = round(1e3 * batch / milliseconds, 1)
                found[f"{name} batch {batch}, {kind}, same"] = round(same, 5)
    return found


def _masks(bench: Bench, model: Any, x: Tensor) -> Tensor:
    dtype = autocast_dtype("auto", bench.device)
    autocast = torch.autocast(bench.device.type, dtype, enabled=dtype is not None)
    with torch.inference_mode(), autocast:
        return predict_mask(model, x, Protocol(), with_confidence=False)[0]


def _compiled(model: Any) -> Any:
    """A copy whose forward pass is compiled."""
    model = copy.copy(model)
    model.coarse = torch.compile(model.coarse, dynamic=False)
    return model
