"""Runs exported models: an ONNX or OpenVINO file as the network of a `Predictor`.

Every file that `export.py` writes has two outputs: one for deployment (`logits` or `mask`, at the
image's size) and `coarse`, the logits at the decoder's own scale. Only `coarse` is used here;
windows, resizing and argmax are then computed as for a PyTorch model, by blocks of rows, so the
full-size logits of a large image never exist and every file gives the same `Result`.

Shapes: B batch, H x W image, K classes.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from setr._extras import import_extra
from setr.errors import USAGE, SetrError, first_line
from setr.model import Output, resize
from setr.model_info import ModelInfo, read_info
from setr.processes.machine import HEAP, page_out

SUFFIXES = (".onnx", ".xml")
"""Endings of the files `open_exported` reads."""
INPUT, COARSE = "images", "coarse"
"""Names of the graph's input, and of the output with logits at the decoder's own scale."""
KEYS = ("format", "model", "labels", "protocol", "mean", "std", "export")
"""Required metadata, stored as JSON under `setr.KEY` (ONNX) or setr/KEY (OpenVINO)."""

Run = Callable[[np.ndarray], list[np.ndarray]]
"""Images in the file's `Form` -> the requested outputs."""


class Form(NamedTuple):
    """The input of a graph.

    Attributes:
        mean: of each channel, for images from 0 to 1.
        std: standard deviation of each channel.
        size: (H, W) of the single image it takes; None for any batch and size.
        pixels: images are uint8 (B, H, W, C), and the graph normalises them.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    pixels: bool = False

    def of(self, images: np.ndarray) -> np.ndarray:
        """Convert normalised images float32 (B, C, h, w) to the graph's input.

        Smaller ones are padded at the bottom and right with the mean colour; pixels are rounded.

        Raises:
            SetrError: images larger than `size`.
        """
        if self.size:
            free = [whole - side for whole, side in zip(self.size, images.shape[-2:], strict=True)]
            if min(free) < 0:
                H, W = images.shape[-2:]
                raise SetrError(
                    f"the file takes images of {self.size[0]}x{self.size[1]} (height x width) and "
                    f"was given {H}x{W}; leave out --window, --protocol and their like, or export "
                    "without --size",
                    code=USAGE,
                )
            images = np.pad(images, ((0, 0), (0, 0), (0, free[0]), (0, free[1])))
        if self.pixels:
            mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
            images = images.transpose(0, 2, 3, 1) * std + mean
            images = np.rint(images * 255).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(images)


ANY = Form()
"""Normalised images of any batch and size."""


class ExportedModel(nn.Module):
    """A network in another runtime, with the methods of `SETR` that inference calls.

    Args:
        run: computes the coarse logits.
        values: the file's metadata.
    """

    def __init__(self, run: Run, values: dict[str, Any]) -> None:
        super().__init__()
        self.run, self.export = run, values["export"]
        size, grid = self.export.get("size"), self.export.get("grid")
        self.grid = (int(grid[0]), int(grid[1])) if grid else None
        self.form = Form(
            tuple(values["mean"]),
            tuple(values["std"]),
            (int(size[0]), int(size[1])) if size else None,
            bool(self.export.get("pixels")),
        )
        self.num_classes = len(values["labels"]["classes"])
        self.patch_size = int(self.export["patch_size"])
        self.is_transformer = values["model"].get("decoder") not in ("fcn", "semantic_fpn")
        self.squeeze = values["model"].get("odd_sizes") == "squeeze"

    def coarse(self, images: Tensor) -> Output:
        """As `SETR.coarse`."""
        given = self.form.of(images.float().cpu().numpy())
        parts = np.split(given, len(given)) if self.form.size else [given]
        found = [self.run(part)[0] for part in parts]
        logits = found[0] if len(found) == 1 else np.concatenate(found)
        H, W = self.form.size or images.shape[-2:]
        p = self.patch_size
        size = (H, W) if self.squeeze else (-(-H // p) * p, -(-W // p) * p)
        return Output(torch.from_numpy(logits).to(images.device), [], size)

    def forward(self, images: Tensor) -> Tensor:
        """As `SETR.forward`: normalised images (B, C, H, W) -> logits (B, K, H, W)."""
        output = self.coarse(images)
        return resize(output.logits, output.size)[..., : images.shape[-2], : images.shape[-1]]


def open_exported(path: Path, device: str = "auto") -> tuple[ExportedModel, ModelInfo]:
    """Open a file that `setr export` wrote.

    Args:
        path: an .onnx file, or an .xml file with its .bin beside it.
        device: `cpu`; for ONNX also `cuda`, `cuda:1`, … where onnxruntime has that provider; `auto`
            takes the first GPU if so.

    Raises:
        SetrError: missing or broken file, a model of another program, no such device, or the
            runtime is not installed.
    """
    if not path.is_file():
        raise SetrError(f"{path}: no such file", code=USAGE)
    opener = onnx_run if path.suffix == ".onnx" else openvino_run
    run, stored = opener(path, (COARSE,), device)
    missing = [key for key in KEYS if key not in stored]
    if missing:
        raise SetrError(
            f"{path}: was not written by setr export (no '{missing[0]}' in its metadata), so its "
            "classes and normalisation are unknown; export the model again from its directory"
        )
    try:
        values = {key: json.loads(text) for key, text in stored.items()}
        return ExportedModel(run, values).eval(), read_info(values, str(path))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SetrError(f"{path}: its metadata is broken ({error!r:.120})") from None


def onnx_run(path: Path, outputs: Sequence[str], device: str = "cpu") -> tuple[Run, dict[str, str]]:
    """An ONNX file in ONNX Runtime -> a function for these outputs, and the file's metadata."""
    ort = import_extra("onnxruntime", "onnx", str(path))
    providers = _providers(device, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # it would keep memory for every image size seen
    try:
        session = ort.InferenceSession(
            path, options, providers=providers, enable_fallback=device == "auto"
        )
    except Exception as error:  # onnxruntime's own classes, one per kind of failure
        reason = first_line(error)
        raise SetrError(f"{path}: not an ONNX model that can be run ({reason:.120})") from None
    if device != "auto" and session.get_providers() != [name for name, _ in providers]:
        raise SetrError(
            f"device '{device}': onnxruntime-gpu cannot use it; check its CUDA and cuDNN "
            "libraries, or use --device cpu"
        )
    HEAP.give_back(now=True)  # memory that reading the file took
    metadata = session.get_modelmeta().custom_metadata_map
    stored = {k.removeprefix("setr."): v for k, v in metadata.items() if k.startswith("setr.")}
    needed = ort.RunOptions()
    needed.add_run_config_entry("only_execute_path_to_fetches", "1")
    needed.only_execute_path_to_fetches = True

    def run(images: np.ndarray) -> list[np.ndarray]:
        found: list[np.ndarray] = session.run(list(outputs), {INPUT: images}, needed)
        return found

    return run, stored


def _providers(device: str, available: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's execution providers for a device, in order of preference."""
    gpu, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    if device == "auto":
        device = "cuda" if gpu in available else "cpu"
    if device == "cpu":
        return [(cpu, {})]
    named = re.fullmatch(r"cuda(?::(\d+))?", device)
    if not named or gpu not in available:
        raise SetrError(
            f"device '{device}': this onnxruntime has {', '.join(available)}; use --device cpu, or "
            "install onnxruntime-gpu",
            code=USAGE,
        )
    return [(gpu, {"device_id": named[1] or "0"}), (cpu, {})]


def openvino_run(
    path: Path, outputs: Sequence[str], device: str = "cpu"
) -> tuple[Run, dict[str, str]]:
    """An OpenVINO file -> a function for these outputs, and the file's metadata."""
    ov = import_extra("openvino", "openvino", str(path))
    if device not in ("auto", "cpu"):
        raise SetrError(
            f"device '{device}': OpenVINO files run on the CPU here; use --device cpu", code=USAGE
        )
    core = ov.Core()
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise SetrError(f"{path}: not an OpenVINO model, or its .bin is missing ({reason:.120})") \
            from None  # fmt: skip
    stored = {}
    if model.has_rt_info(["setr"]):
        for key in model.get_rt_info(["setr"]).value:
            stored[key] = model.get_rt_info(["setr", key]).value
    if "export" not in stored:
        return (lambda images: []), stored
    kept = [model.output(name) for name in outputs]
    precision = json.loads(stored["export"])["precision"]
    compiled = core.compile_model(
        ov.Model(kept, model.get_parameters()), "CPU", openvino_settings(core, precision)
    )
    request = compiled.create_infer_request()
    if compiled.input(0).partial_shape.is_dynamic:
        request.infer({0: _small_images(compiled.input(0))})  # packs the weights
        page_out(path.with_suffix(".bin"))

    count = len(kept)  # the closure must not keep the model, whose weights have been copied
    busy = threading.Lock()  # a request has one set of inputs and outputs

    def run(images: np.ndarray) -> list[np.ndarray]:
        with busy:
            found = request.infer({0: images}, share_inputs=True)
            return [found[i] for i in range(count)]

    return run, stored


def _small_images(given: Any) -> np.ndarray:
    """A black image of 64x64 for an OpenVINO input whose batch and size are free."""
    _, *sides = given.partial_shape
    shape = [1, *(side.get_length() if side.is_static else 64 for side in sides)]
    return np.zeros(shape, given.element_type.to_dtype())


def openvino_settings(core: Any, precision: str) -> dict[str, Any]:
    """OpenVINO's CPU settings for a file of this precision.

    By default OpenVINO computes even fp32 files in bf16 where the processor can. In int8 files the
    layers that are not quantised run in bf16 where the processor can.
    """
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    low = precision in ("bf16", "int8") and has_bf16
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
