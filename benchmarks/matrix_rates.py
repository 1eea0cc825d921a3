"""How fast this machine multiplies matrices on its processor, by precision: what floors rest on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

PRODUCTS = ((2048, 2048, 2048), (1024, 768, 3072), (1024, 3072, 768), (4096, 1024, 4096))
"""Matrix products (m, k) x (k, n) whose best rate counts: large ones, and those of an encoder."""


def matmul_rates(job: dict[str, Any], _: Path) -> dict[str, float]:
    """Best rate in GFLOP/s of matrix products, by precision: over shapes and libraries."""
    shrink = 8 if job["tiny"] else 1
    rates: dict[str, float] = {}
    for m, k, n in PRODUCTS:
        a, b = torch.randn(m // shrink, k // shrink), torch.randn(n // shrink, k // shrink)
        operations = 2 * a.numel() * len(b)
        for precision, multiply in products(a, b):
            rate = operations / fastest(multiply) / 1e9
            rates[precision] = max(rates.get(precision, 0.0), rate)
    return rates


def products(a: Any, b: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to compute `a @ b.T`, by precision: PyTorch's MKL and oneDNN, and OpenVINO."""
    from setr.layers.products import product

    low_a, low_b = a.bfloat16(), b.bfloat16()
    yield "fp32", lambda: a @ b.t()
    yield "bf16", lambda: low_a @ low_b.t()
    if torch.backends.mkldnn.is_available():
        yield "fp32", lambda: product(a, b)
    with contextlib.suppress(ImportError):
        for precision in ("fp32", "bf16"):
            yield precision, openvino_product(a, b, precision)


def openvino_product(a: Any, b: Any, precision: str) -> Callable[[], object]:
    """`a @ b.T` in OpenVINO, the second factor packed beforehand as the weights of a layer are."""
    from setr._extras import unreported
    from setr.exporting.sessions import openvino_settings

    unreported("openvino")
    import openvino as ov
    from openvino import opset13 as ops

    core, x = ov.Core(), ops.parameter(list(a.shape), np.float32)
    graph = ov.Model([ops.matmul(x, ops.constant(b.numpy()), False, True)], [x])
    compiled = core.compile_model(graph, "CPU", openvino_settings(core, precision))
    request, array = compiled.create_infer_request(), a.numpy()
    return lambda: request.infer({0: array}, share_inputs=True)


def fastest(work: Callable[[], object], seconds: float = 0.3) -> float:
    """Seconds of the fastest of many runs, at least three and for so long, after one to warm up."""
    work()
    end, times = time.perf_counter() + seconds, []
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
