"""One case of `train_step.py`, measured in this process: ours or the peer's."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peers import load_mmseg, peak_mb, setr_config
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def run(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Figures of one case: median seconds, peak memory, and what its kind adds."""
    if case["device"] == "cpu":
        torch.set_num_threads(2)
    torch.manual_seed(0)
    if case["kind"] == "memory":
        return loss_alone(case)
    work = peer_step(case) if case["who"] == "mmseg" else our_step(case)
    flops = 0
    if case["who"] == "setr" and case["kind"] != "growth":
        counted = our_step({**case, "compile": False}) if case["compile"] else work
        with counter() as mode:
            counted()
        flops = mode.get_total_flops()
        del counted
    if case["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    warm_up = 3 if case["device"] == "cuda" else 1
    for _ in range(warm_up):
        work()
    figures = {"seconds": [timed(work, case["device"]) for _ in range(repeats)]}
    peak = torch.cuda.max_memory_allocated() / 2**20 if case["device"] == "cuda" else peak_mb()
    figures |= {"peak_mb": round(peak), "flops": flops}
    if flops:
        figures["flops_per_second"] = matmul_rate(case)
    if case["kind"] == "parts":
        figures["parts"] = parts(case, repeats)
    return figures


def counter() -> FlopCounterMode:
    """Counts operations, those its list lacks too: torch's attention for CPUs, oneDNN's linear."""
    aten = torch.ops.aten
    further = {
        torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **__: (
            2 * math.prod(x) * weight[0]
        ),
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
            q, k, v
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=further)


def timed(work: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def dtype_of(case: dict[str, Any]) -> Any:
    if case["who"] == "mmseg":
        return torch.bfloat16 if case["precision"] == "bf16" else None
    from setr.layers.precision import autocast_dtype

    return autocast_dtype(case["precision"], torch.device(case["device"]))


def matmul_rate(case: dict[str, Any]) -> float:
    """Operations per second of a matrix product of the encoder's shape, in the case's precision.

    By the faster of PyTorch's libraries, which on some CPUs is not the default one.
    """
    if case["device"] == "cuda":  # a product of this size would time its launch
        from setr.processes.machine import matmul_rate as square_rate

        return square_rate(torch.device("cuda"), dtype_of(case))
    from setr.layers.products import product, worth_it

    m, k, n = (256, 256, 256) if case["size"] == "tiny" else (2048, 768, 3072)
    dtype = dtype_of(case) or torch.float32
    a, b = (torch.randn(s, dtype=dtype, device=case["device"]) for s in ((m, k), (n, k)))

    def work() -> None:
        for _ in range(10):
            product(a, b) if worth_it(a, b) else a @ b.t()

    best = min(timed(work, case["device"]) for _ in range(8))
    return 10 * 2 * m * k * n / best


def batch_of(case: dict[str, Any]) -> tuple[Any, Any]:
    """Images of noise, and masks in regions of 16x16 pixels."""
    B, side = case["batch"], case["side"]
    images = torch.randn(B, 3, side, side)
    target = torch.randint(case["classes"], (B, side // 16, side // 16))
    target = target.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return images.to(case["device"]), target.to(case["device"])


def our_model(case: dict[str, Any]) -> Any:
    from setr import create_model

    with torch.device(case["device"]):  # a GPU draws the weights of ViT-L in no time
        model = create_model(
            f"setr_{case['decoder']}_{case['size']}",
            num_classes=case["classes"],
            img_size=case["side"],
        )
    return model.train()


def loss_of(case: dict[str, Any], output: Any, target: Any) -> Any:
    """The fused loss, or the plain one with logits at the image's size."""
    import torch.nn.functional as F

    from setr.layers.upsampling import upsample
    from setr.losses import count_weight, segmentation_loss

    if case["loss"] == "fused":
        return segmentation_loss(output, target, normalizer=count_weight(target))["loss"]
    aux = [upsample(x, output.aux_scale) for x in output.aux]
    losses = [
        F.cross_entropy(F.interpolate(x.float(), size=output.size, mode="bilinear"), target)
        for x in (output.logits, *aux)
    ]
    return losses[0] + 0.4 * sum(losses[1:])


def our_step(case: dict[str, Any]) -> Callable[[], object]:
    model, (images, target), dtype = our_model(case), batch_of(case), dtype_of(case)
    call = torch.compile(model) if case["compile"] else model

    def work() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(case["device"], dtype, enabled=dtype is not None):
            output = call(images, with_aux=True)
        loss = loss_of(case, output, target)
        del output  # as in training: nothing needs the logits any more
        loss.backward()

    return work


class Stopwatch:
    """Seconds and operations of named parts; a name that comes twice in a step adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.flops: dict[str, int] = {}
        self.counting = False
        self.fresh: set[str] = set()

    def start(self, *, counting: bool) -> None:
        """Begin a step; one that counts operations is not timed."""
        self.counting, self.fresh = counting, set()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Everything inside belongs to a part."""
        if self.counting:
            with counter() as mode:
                yield
            self.flops[name] = self.flops.get(name, 0) + mode.get_total_flops()
            return
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        steps = self.seconds.setdefault(name, [])
        if name in self.fresh:
            steps[-1] += spent
        else:
            steps.append(spent)
        self.fresh.add(name)


def parts(case: dict[str, Any], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds and operations of the model's parts, which are cut from each other."""
    from setr.model import Output

    model, (images, target), dtype = our_model(case), batch_of(case), dtype_of(case)
    watch = Stopwatch()

    def cut(tensors: list[Any]) -> list[Any]:
        return [t.detach().requires_grad_() for t in tensors]

    def pull(outputs: list[Any], leaves: list[Any]) -> None:
        pairs = [(o, leaf.grad) for o, leaf in zip(outputs, leaves, strict=True)]
        outputs, grads = zip(*(pair for pair in pairs if pair[1] is not None), strict=True)
        torch.autograd.backward(outputs, grads)

    def step(counting: bool) -> None:
        watch.start(counting=counting)
        model.zero_grad(set_to_none=True)
        with torch.autocast(case["device"], dtype, enabled=dtype is not None):
            with watch.part("encoder, forward"):
                maps = model.encoder(images)
            maps_in = cut(maps)
            with watch.part("decoder, forward"):
                features = model.neck(maps_in)
            features_in = cut(features)
            with watch.part("decoder, forward"):
                logits = model.decoder(features_in)
            with watch.part("auxiliary heads, forward"):
                heads = zip(model.aux_heads, model.aux_indices, strict=True)
                aux = [head([features_in[i]]) for head, i in heads]
        leaves = cut([logits, *aux])
        output = Output(leaves[0], leaves[1:], model.covered_size(*images.shape[-2:]))
        with watch.part("loss, forward"):
            loss = loss_of(case, output, target)
        with watch.part("loss, backward"):
            loss.backward()
        with watch.part("auxiliary heads, backward"):
            pull(aux, leaves[1:])
        with watch.part("decoder, backward"):
            pull([logits], leaves[:1])
            pull(features, features_in)
        with watch.part("encoder, backward"):
            pull(maps, maps_in)

    step(counting=True)
    for _ in range(repeats):
        step(counting=False)
    return {
        name: {"seconds": statistics.median(seconds), "flops": watch.flops[name]}
        for name, seconds in watch.seconds.items()
    }


def loss_alone(case: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of one loss and its gradient: logits of 32x32, an image of any size."""
    from setr.model import Output

    K, side = case["classes"], case["side"]
    logits = torch.randn(1, K, 32, 32, requires_grad=True)
    target = torch.randint(K, (1, side, side), dtype=torch.uint8)
    before = peak_mb()
    target = target if case["loss"] == "fused" else target.long()
    loss_of(case, Output(logits, [], (side, side)), target).backward()
    return {"peak_mb": round(peak_mb() - before, 1)}


def peer_step(case: dict[str, Any]) -> Callable[[], object]:
    """The same step by mmsegmentation, in its own interpreter, with its own SETR configuration."""
    load_mmseg()
    from mmengine.config import Config
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    sizes = (case["decoder"], case["size"], case["side"], case["classes"])
    config = setr_config(*sizes, aux=True, cls_token=case["decoder"] != "mla")
    model = MODELS.build(Config(config)).to(case["device"]).train()
    images, target = batch_of(case)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=mask[None])) for mask in target]
    dtype = dtype_of(case)

    def work() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(case["device"], dtype, enabled=dtype is not None):
            losses = model(images, samples, mode="loss")
        sum(value for name, value in losses.items() if "loss" in name).backward()

    return work
