"""Opens ONNX and OpenVINO files in their runtimes, as functions from images to outputs.

Only names and threads are known here; what the outputs mean is in `runtime.py`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr._extras import import_extra
from setr.errors import SetrError, UsageError, first_line
from setr.processes.faults import machine_fault
from setr.processes.machine import HEAP, page_out
from setr.reading.parsed import json_of

INPUT, COARSE = "images", "coarse"
"""Names of the graph's input, and of the output with logits at the decoder's own scale."""

LARGEST_PATCH = 1024
"""Side in pixels; of no model, but a file may claim any."""

Run = Callable[[np.ndarray], list[np.ndarray]]
"""Images in the file's `Form` -> the requested outputs."""


def onnx_run(path: Path, outputs: Sequence[str], device: str = "cpu") -> tuple[Run, dict[str, str]]:
    """An ONNX file in ONNX Runtime -> a function for these outputs, and the file's metadata.

    Raises:
        SetrError: broken, or a device that ONNX Runtime cannot use.
    """
    ort = import_extra("onnxruntime", "onnx", str(path))
    providers = _providers(device, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # it would keep memory for every image size seen
    try:
        session = ort.InferenceSession(
            path,
            options,
            providers=providers,
            enable_fallback=len(providers) > 1 and device == "auto",
        )
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's own classes, or of text that is not UTF-8
        reason = first_line(error)
        raise SetrError(f"{path}: not an ONNX model that can be run ({reason:.120})") from None
    if device != "auto" and session.get_providers() != [name for name, _ in providers]:
        raise SetrError(
            f"device '{device}': onnxruntime-gpu cannot use it; check its CUDA and cuDNN "
            "libraries, or use --device cpu"
        )
    HEAP.give_back(now=True)  # memory that reading the file took
    stored = {k.removeprefix("setr."): v for k, v in metadata.items() if k.startswith("setr.")}
    needed = ort.RunOptions()
    needed.add_run_config_entry("only_execute_path_to_fetches", "1")
    needed.only_execute_path_to_fetches = True

    def run(images: np.ndarray) -> list[np.ndarray]:
        return session.run(list(outputs), {INPUT: images}, needed)

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
        raise UsageError(
            f"device '{device}': this onnxruntime has {', '.join(available)}; use --device cpu, or "
            "install onnxruntime-gpu"
        )
    return [(gpu, {"device_id": named[1] or "0"}), (cpu, {})]


def openvino_run(
    path: Path, outputs: Sequence[str], device: str = "cpu"
) -> tuple[Run, dict[str, str]]:
    """An OpenVINO file -> a function for these outputs, and the file's metadata.

    Raises:
        SetrError: broken, or a device other than the CPU.
    """
    ov = import_extra("openvino", "openvino", str(path))
    if device not in ("auto", "cpu"):
        raise UsageError(f"device '{device}': OpenVINO files run on the CPU here; use --device cpu")
    core = ov.Core()
    with _own_copy(path.with_suffix(".bin")) as weights, _as_broken(path):
        if weights is None:
            core.set_property({"ENABLE_MMAP": False})  # all is read into memory
        model = core.read_model(path, weights or path.with_suffix(".bin"))
        stored = {}
        if model.has_rt_info(["setr"]):
            for key in model.get_rt_info(["setr"]).value:
                stored[key] = model.get_rt_info(["setr", key]).value
        try:
            export = json_of(stored.get("export", ""))
            precision, patch = export["precision"], int(export["patch_size"])
            if not 1 <= patch <= LARGEST_PATCH:
                raise ValueError
        except (ValueError, KeyError, TypeError, OverflowError):
            return (lambda images: []), stored  # the caller says what is wrong with the file
        kept = [model.output(name) for name in outputs]
        compiled = core.compile_model(
            ov.Model(kept, model.get_parameters()), "CPU", openvino_settings(core, precision)
        )
        if weights is not None:
            page_out(weights)
        request = compiled.create_infer_request()
        if compiled.input(0).partial_shape.is_dynamic:
            request.infer({0: _small_images(compiled.input(0), patch)})  # packs the weights
            if weights is not None:
                page_out(weights)

    count = len(kept)  # the closure must not keep the model, whose weights have been copied
    busy = threading.Lock()  # a request has one set of inputs and outputs

    def run(images: np.ndarray) -> list[np.ndarray]:
        with busy:
            found = request.infer({0: images}, share_inputs=True)
            return [found[i] for i in range(count)]

    return run, stored


@contextmanager
def _as_broken(path: Path) -> Iterator[None]:
    """Makes what OpenVINO says about a file, or text in it that is not UTF-8, one line."""
    try:
        yield
    except (RuntimeError, UnicodeDecodeError) as error:
        if machine_fault(error):
            raise
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise SetrError(
            f"{path}: not an OpenVINO model that can be run, or its .bin is missing ({reason:.120})"
        ) from None


@contextmanager
def _own_copy(path: Path) -> Iterator[Path | None]:
    """An unnamed copy of a file, beside it or among temporary files; None where there is no place.

    OpenVINO maps its weights and reads parts of them again while it runs. A program that writes
    into that file would change its answers, or end the process.
    """
    with ExitStack() as stack:
        copied = None
        for folder in (path.parent, None):  # that of temporary files may be in memory
            with suppress(OSError):  # no such file, not writable, no room
                file = stack.enter_context(open(path, "rb"))
                copy = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                shutil.copyfileobj(file, copy, 1 << 20)
                copy.flush()
                named = Path(f"/proc/self/fd/{copy.fileno()}")  # of Linux
                copied = named if named.exists() else None
            if copied:
                break
        yield copied


def _small_images(given: Any, patch: int) -> np.ndarray:
    """A black image of 16x16 patches for an OpenVINO input whose batch and size are free.

    Of few tokens, matrix products have another layout of their weights than of many.
    """
    _, *sides = given.partial_shape
    shape = [1, *(side.get_length() if side.is_static else 16 * patch for side in sides)]
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
