"""One step of `inference.py` in this process: a model's weights and files, or a way to run it."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import load_mmseg, peak_mb, setr_config

NUM_CLASSES = 150


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds after one run that warms up, and what the work gives."""
    result = work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def peer_model(model: str, size: int) -> Any:
    """One of mmsegmentation's SETR models with random weights."""
    import torch

    load_mmseg()
    from mmengine.config import Config
    from mmseg.registry import MODELS

    torch.manual_seed(0)
    decoder, _, scale = model.partition("_")
    return MODELS.build(Config(setr_config(decoder, scale, size, NUM_CLASSES))).eval()


def peer(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Save the peer's weights, or time it."""
    import numpy as np
    import torch

    size = job["size"]
    model = peer_model(job["model"], size)
    path = work / "peer.pth"
    if job["step"] == "weights":
        torch.save({"state_dict": model.state_dict()}, path)
        return {}
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    x = torch.from_numpy(np.load(work / "input.npy"))
    meta = [{"ori_shape": (size, size), "img_shape": (size, size), "pad_shape": (size, size)}]

    @torch.no_grad()
    def run() -> Any:
        return model.encode_decode(x, meta).argmax(dim=1)

    seconds, mask = timed(run, job["repeats"])
    np.save(work / "mmseg fp32.npy", mask[0].numpy().astype("uint8"))
    return {"seconds": seconds, "peak_mb": peak_mb()}


def prepare(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Our model with the peer's weights (or its own), an input, every exported file, the FLOPs."""
    import numpy as np
    import torch

    import setr
    from setr.data import scenes
    from setr.export import metadata, write_openvino
    from setr.exporting.graphs import Graph, trace
    from setr.exporting.onnx_file import write_onnx
    from setr.hub import save_pretrained
    from setr.inference import normalize
    from setr.labels import Labels
    from setr.model_info import ModelInfo
    from setr.training.complexity import forward_flops

    size = job["size"]
    if (work / "peer.pth").exists():
        model: Any = setr.load(work / "peer.pth", device="cpu").network
    else:
        torch.manual_seed(0)
        decoder, _, scale = job["model"].partition("_")
        model = setr.create_model(
            f"setr_{decoder}_{scale}", num_classes=NUM_CLASSES, img_size=size, aux=False
        ).eval()
    info = ModelInfo(Labels(tuple(f"class {i}" for i in range(NUM_CLASSES))))
    save_pretrained(work / "model", model, info)
    images = [
        normalize(
            torch.from_numpy(scenes.draw("bench", i, size=size)[0])[None], info.mean, info.std
        )
        for i in range(8)
    ]
    np.save(work / "input.npy", images[0].numpy())
    if any("onnx" in c or "openvino" in c for c in job["contenders"]):
        stored = lambda precision: metadata(model, info, precision, "logits")  # noqa: E731
        write_onnx(trace(Graph(model, "logits")), work / "m.onnx", "logits", stored("fp32"), None)
        for contender in job["contenders"]:
            runtime, precision = contender.split()
            if runtime == "openvino":
                given, plain = None, work / "m.onnx"
                if precision == "int8":  # as `setr export` makes it
                    given, plain = [x.numpy() for x in images], work / "plain.onnx"
                    graph = Graph(model, "logits", convolve_first=False)
                    write_onnx(trace(graph), plain, "logits", stored("fp32"), None)
                path = work / f"{precision}.xml"
                write_openvino(plain, path, precision, stored(precision), given)  # type: ignore[arg-type]
    return {
        "gflops": forward_flops(model, size, size) / 1e9,
        "least_gflops": least_flops(model, size) / 1e9,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def least_flops(model: Any, size: int) -> int:
    """Operations of the form that needs the fewest, which files have: convolve, then upsample."""
    from setr.decoders import ConvBNReLU
    from setr.training.complexity import forward_flops

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ConvBNReLU):
            module.in_graph = True
    return forward_flops(model, size, size)


def ours(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Time one of ours: from a normalised image to its mask."""
    import numpy as np
    import torch

    import setr
    from setr.inference import predict_mask
    from setr.protocols import Protocol

    runtime, precision = job["contender"].split()
    source = {"onnxruntime": "m.onnx", "openvino": f"{precision}.xml"}.get(runtime, "model")
    own = precision if source == "model" else "auto"
    predictor = setr.load(work / source, device=job["device"], precision=own)
    if runtime == "compile":
        predictor.network.coarse = torch.compile(predictor.network.coarse)  # type: ignore[method-assign]
    x = torch.from_numpy(np.load(work / "input.npy")).repeat(job["batch"], 1, 1, 1)
    x = x.to(predictor.device)

    def run() -> Any:
        with (
            torch.inference_mode(),
            torch.autocast(x.device.type, predictor.dtype, enabled=predictor.dtype is not None),
        ):
            mask, _ = predict_mask(predictor.model, x, Protocol(), with_confidence=False)
            return mask.cpu()

    if job["device"] == "cuda":
        run(), run()  # compiles
    seconds, mask = timed(run, job["repeats"])
    np.save(work / f"{job['contender']}.npy", mask[0].numpy())
    peak = torch.cuda.max_memory_allocated() / 2**20 if job["device"] == "cuda" else peak_mb()
    return {"seconds": seconds, "peak_mb": peak}
