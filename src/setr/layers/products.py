"""fp32 matrix products and linear layers on CPUs, with oneDNN where it is faster than MKL.

PyTorch multiplies fp32 matrices with MKL, which runs only its AVX2 code on processors not made by
Intel. oneDNN, which PyTorch ships for convolutions and bf16, uses AVX-512 wherever available: about
twice the speed on an AMD EPYC (docs/performance.md). The operator used here is the one that
`torch.compile` substitutes for frozen linear layers; it has no backward, so one is defined here.

`exact_products` and `no_autocast` switch off reduced precision, on any device.
"""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

WORTH_IT = 2**21
"""Products with fewer multiplications are as fast with MKL."""


@functools.cache
def onednn_is_faster() -> bool:
    """Whether fp32 products should use oneDNN instead of MKL on this machine.

    A fixed rule rather than a timing, so that repeated runs on one machine give equal numbers.
    """
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _cpu_vendor()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _cpu_vendor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()[:2000]
    except OSError:
        return platform.processor()


def worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether `x @ weight.T` is an fp32 product on a CPU that is faster with oneDNN."""
    if not (x.dtype is weight.dtype is torch.float32 and x.device.type == "cpu"):
        return False
    if weight.ndim != 2 or isinstance(x, FakeTensor) or isinstance(weight, FakeTensor):
        return False
    return x.numel() * weight.shape[0] >= WORTH_IT and onednn_is_faster()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` with oneDNN, no backward: (..., K), (O, K), (O,) -> (..., O)."""
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(x: Tensor) -> Tensor:
    """Make rows or columns contiguous; other layouts would use oneDNN's slow reference code."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


class _Linear(torch.autograd.Function):
    """`F.linear` whose forward and backward products run in oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.t()) if need_x else None,
            product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if need_weight else None,
            rows.sum(dim=0) if need_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with oneDNN, for where `worth_it`: (..., K), (O, K), (O,) -> (..., O)."""
    return _Linear.apply(x, weight, bias)


def exact_products(device: torch.device) -> AbstractContextManager[Any]:
    """Context for matrix products in the operands' dtype, without autocast and TF32.

    In compiled graphs only autocast is disabled; the matmul precision stays.
    """
    if torch.compiler.is_compiling():
        return no_autocast(device)
    return _HIGHEST.held(device)


class _HighestPrecision:
    """The process's matmul precision, raised while at least one thread needs that."""

    def __init__(self) -> None:
        self.lock, self.threads, self.before = threading.Lock(), 0, "highest"

    @contextmanager
    def held(self, device: torch.device) -> Iterator[None]:
        with self.lock:
            if not self.threads:
                self.before = torch.get_float32_matmul_precision()
                self._set("highest")
            self.threads += 1
        try:
            with no_autocast(device):
                yield
        finally:
            with self.lock:
                self.threads -= 1
                if not self.threads:
                    self._set(self.before)

    def _set(self, precision: str) -> None:
        if self.before != "highest":
            torch.set_float32_matmul_precision(precision)


_HIGHEST = _HighestPrecision()


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context without autocast; it does nothing on the meta device, which has no autocast."""
    # not `is_autocast_available`, which causes a graph break in torch.compile
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
