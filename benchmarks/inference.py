"""Speed and memory from image to mask: ours in every runtime, mmsegmentation beside it.

    python benchmarks/inference.py [--peer-python PEER/bin/python] [--models pup_base mla_base]
        [--rounds 3] [--trained MODEL DATA] [--tiny] [--markdown]

512x512, 150 classes, batch 1. Both sides carry the same random weights (the peer's, converted), so
masks can be compared. Every contender runs in a process of its own, in turn, `--rounds` times, on
the same machine; figures are medians over the rounds, and ratios are taken within a round. The
floor is the fewest operations any form of the model here needs, at the best rate of matrix products
in the row's own precision, over shapes and libraries, measured before the model's rounds; int8 has
none, because no rate is measured.
`--trained` adds `setr bench` of a trained model: agreement and mIoU of every runtime where they
mean something. With a GPU, rows in bf16 and compiled bf16 at batch 1 and 16 follow.

The peer is mmsegmentation 1.2.2 with mmcv-lite in another environment; without it its rows are
left out. Prints a table (`--markdown` for documents) and writes results/inference.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matrix_rates import matmul_rates
from peers import load_mmseg, peak_mb

CONTENDERS = (
    "mmseg fp32",
    "eager fp32",
    "eager bf16",
    "onnxruntime fp32",
    "openvino fp32",
    "openvino bf16",
    "openvino int8",
)
GPU_ROWS = ("eager bf16", "compile bf16")
SIZES = {"tiny": (192, 12, 3), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, depth and heads."""
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
    width, depth, heads = SIZES[scale]
    norm = {"type": "BN", "requires_grad": True}
    last = [depth * k // 4 - 1 for k in (1, 2, 3, 4)]
    head = {
        "num_classes": NUM_CLASSES,
        "dropout_ratio": 0,
        "norm_cfg": norm,
        "align_corners": False,
    }
    upsampling = {
        "pup": {"num_convs": 4, "up_scale": 2, "kernel_size": 3},
        "naive": {"num_convs": 1, "up_scale": 4, "kernel_size": 1},
    }
    config: dict[str, Any] = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor"},
        "backbone": {
            "type": "VisionTransformer",
            "img_size": (size, size),
            "patch_size": 16,
            "embed_dims": width,
            "num_layers": depth,
            "num_heads": heads,
            "out_indices": last if decoder == "mla" else last[-1:],
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "interpolate_mode": "bilinear",
        },
        "test_cfg": {"mode": "whole"},
    }
    if decoder == "mla":
        config["neck"] = {
            "type": "MLANeck",
            "in_channels": [width] * 4,
            "out_channels": 256,
            "norm_cfg": norm,
            "act_cfg": {"type": "ReLU"},
        }
        config["decode_head"] = {
            "type": "SETRMLAHead",
            "in_channels": (256,) * 4,
            "channels": 512,
            "in_index": (0, 1, 2, 3),
            "mla_channels": 128,
            **head,
        }
    else:
        config["decode_head"] = {
            "type": "SETRUPHead",
            "in_channels": width,
            "channels": 256,
            "in_index": 0,
            **upsampling[decoder],
            **head,
        }
    return MODELS.build(Config(config)).eval()


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
                    graph = Graph(model, "logits", spread=False)
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


STEPS = {"rates": matmul_rates, "weights": peer, "prepare": prepare, "peer": peer, "ours": ours}


def start(
    python: str, step: str, work: Path, threads: int, script: str = __file__, **job: Any
) -> dict[str, Any]:
    """Run one step of a benchmark script in a fresh process and read its figures."""
    done = subprocess.run(
        [python, script, "--step", json.dumps({"step": step, "work": str(work), **job})],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise SystemExit(f"{step} {job} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_model(name: str, given: argparse.Namespace, contenders: list[str]) -> dict[str, Any]:
    """All contenders on one model, in rounds."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="setr-inference-") as folder:
        work = Path(folder)
        job = {"model": name, "size": given.size, "repeats": given.repeats}
        if "mmseg fp32" in contenders:
            start(given.peer_python, "weights", work, given.threads, **job)
        own = [c for c in contenders if c != "mmseg fp32"]
        about = start(sys.executable, "prepare", work, given.threads, contenders=own, **job)
        rates = start(sys.executable, "rates", work, given.threads, tiny=given.tiny)
        rounds: list[dict[str, dict[str, float]]] = []
        for _ in range(given.rounds):
            figures = {}
            for contender in contenders:
                if contender == "mmseg fp32":
                    figures[contender] = start(
                        given.peer_python, "peer", work, given.threads, **job
                    )
                else:
                    figures[contender] = start(
                        sys.executable, "ours", work, given.threads, contender=contender,
                        device="cpu", batch=1, **job,
                    )  # fmt: skip
                print(f"{name:<12}{contender:<18}{figures[contender]['seconds']:>9.3f} s"
                      f"{figures[contender]['peak_mb']:>8.0f} MB", flush=True)  # fmt: skip
            rounds.append(figures)
        masks = {c: np.load(work / f"{c}.npy") for c in contenders}
    first = contenders[0]

    def median(values: Any) -> float:
        return statistics.median(list(values))

    rows = [
        {
            "contender": c,
            "seconds": median(r[c]["seconds"] for r in rounds),
            "peak_mb": median(r[c]["peak_mb"] for r in rounds),
            "speedup": median(r[first]["seconds"] / r[c]["seconds"] for r in rounds),
            "memory_ratio": median(r[c]["peak_mb"] / r[first]["peak_mb"] for r in rounds),
            "agreement": float((masks[c] == masks[first]).mean()),
        }
        for c in contenders
    ]
    return {"model": name, **about, "matmul_gflops": rates, "reference": first, "rows": rows}


def measure_gpu(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Images per second on a GPU."""
    with tempfile.TemporaryDirectory(prefix="setr-inference-") as folder:
        work = Path(folder)
        job = {"model": name, "size": given.size, "repeats": given.repeats * 10}
        about = start(sys.executable, "prepare", work, given.threads, contenders=[], **job)
        rows = []
        for contender in GPU_ROWS:
            for batch in (1, 16):
                figures = start(
                    sys.executable, "ours", work, given.threads, contender=contender,
                    device="cuda", batch=batch, **job,
                )  # fmt: skip
                speed = batch / figures["seconds"]
                rows.append({"contender": contender, "batch": batch, "images_per_second": speed,
                             "peak_mb": figures["peak_mb"]})  # fmt: skip
                print(
                    f"{name:<12}{contender:<14} batch {batch:<3}{speed:>9.1f} images/s", flush=True
                )
    return {"model": name, **about, "rows": rows}


def bench_trained(
    model: str, data: str, split: str, threads: int, seconds: float
) -> dict[str, Any]:
    """`setr bench` of a trained model on its data."""
    command = [sys.executable, "-m", "setr", "bench", model, "--data", data, "--split", split,
               "--seconds", str(seconds), "--skip", "compile", "--json"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    if done.returncode:
        raise SystemExit(f"setr bench failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def markdown(record: dict[str, Any]) -> str:
    """The record as tables for a document."""
    lines = []
    for found in record["models"]:
        floors = {p: found["least_gflops"] / rate for p, rate in found["matmul_gflops"].items()}
        rates = (f"{rate:.0f} GFLOP/s in {p}" for p, rate in found["matmul_gflops"].items())
        lines += [
            "",
            f"{found['model']}: {found['parameters'] / 1e6:.1f} M parameters, "
            f"{found['gflops']:.0f} GFLOP, {found['least_gflops']:.0f} in the cheapest order; "
            f"matrix products at {', '.join(rates)}: "
            f"floor {', '.join(f'{floor:.2f} s in {p}' for p, floor in floors.items())}.",
            "",
            f"| contender | seconds | times {found['reference']} | peak MB | of its memory | "
            "floor / seconds | same class |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['contender']} | {r['seconds']:.2f} | {r['speedup']:.2f} | {r['peak_mb']:.0f} | "
            f"{r['memory_ratio']:.2f} | {of_floor(r, floors)} | {r['agreement']:.2%} |"
            for r in found["rows"]
        ]
    if record.get("trained"):
        lines += ["", "| runtime | images/s | p50 ms | peak MB | same class as fp32 | mIoU |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for r in record["trained"]["rows"]:
            if "error" not in r:
                t = r["batches"]["1"]
                lines.append(
                    f"| {r['runtime']} {r['precision']} | {t['images_per_second']:.2f} | "
                    f"{t['p50_ms']:.0f} | {t['peak_mb']:.0f} | {r['agreement']:.2%} | "
                    f"{100 * r['miou']:.2f} |"
                )
    if record.get("gpu"):
        lines += ["", "| model | way | batch | images/s | peak MB |", "|---|---|---|---|---|"]
        lines += [
            f"| {g['model']} | {r['contender']} | {r['batch']} | {r['images_per_second']:.1f} | "
            f"{r['peak_mb']:.0f} |"
            for g in record["gpu"]
            for r in g["rows"]
        ]
    return "\n".join(lines)


def of_floor(row: dict[str, Any], floors: dict[str, float]) -> str:
    """The floor of a row's own precision over its time; nothing where no rate was measured."""
    floor = floors.get(row["contender"].split()[-1])
    return "" if floor is None else f"{floor / row['seconds']:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter with mmsegmentation 1.2.2")
    parser.add_argument("--models", nargs="+", default=["pup_base", "naive_base", "mla_base"],
                        help="DECODER_SCALE: naive, pup, mla; tiny, base, large")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trained", nargs=2, metavar=("MODEL", "DATA"))
    parser.add_argument("--split", default="test", help="of the trained model's data")
    parser.add_argument("--gpu-only", action="store_true", help="leave the CPU's rows out")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # one step, in this process
    given = parser.parse_args()
    if given.step:
        job = json.loads(given.step)
        print(json.dumps(STEPS[job["step"]](job, Path(job["work"]))))
        return
    if given.tiny:
        given.models, given.size = ["pup_tiny", "mla_tiny"], 64
        given.rounds, given.repeats = 1, 2
    contenders = [c for c in CONTENDERS if c in given.only]
    if not given.peer_python and "mmseg fp32" in contenders:
        contenders.remove("mmseg fp32")
    import torch

    record: dict[str, Any] = {
        "machine": machine(given.threads),
        "settings": {"size": given.size, "classes": NUM_CLASSES, "batch": 1,
                     "rounds": given.rounds, "repeats": given.repeats},
        "models": [] if given.gpu_only
        else [measure_model(name, given, contenders) for name in given.models],
    }  # fmt: skip
    if given.trained:
        seconds = 0.1 if given.tiny else 20.0
        record["trained"] = bench_trained(*given.trained, given.split, given.threads, seconds)
    if torch.cuda.is_available():
        record["gpu"] = [measure_gpu(name, given) for name in given.models]
    print(markdown(record) if given.markdown else json.dumps(record["models"]))
    if not given.tiny:
        given.out.mkdir(parents=True, exist_ok=True)
        name = "inference_gpu.json" if given.gpu_only else "inference.json"
        (given.out / name).write_text(json.dumps(record, indent=1) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    from setr.provenance import commit, hardware

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("torch", "timm", "onnxruntime", "openvino", "nncf")
    return {
        "hardware": hardware(),
        "threads": threads,
        "commit": commit(),
        **{package: of(package) for package in packages},
    }


if __name__ == "__main__":
    main()
