"""Matrix products and linear layers in fp32 on CPUs, by the library that knows the processor.

PyTorch multiplies fp32 matrices with MKL, which runs its AVX2 code on processors of other makers
than Intel. oneDNN, which PyTorch carries for convolutions and bf16, uses AVX-512 wherever it is:
about twice the rate on an AMD EPYC (docs/performance.md). The operator called here is the one
`torch.compile` puts in place of frozen linear layers; it has no derivative, so that is given here.

`exact_products` keeps products that have to be exact out of autocast and TF32, on any device.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

WORTH_IT = 2**21
"""Multiplications below which the plain product is as fast."""


@functools.cache
def onednn_is_faster() -> bool:
    """Whether fp32 products should leave MKL on this machine.

    A rule, not a timing: equal runs on one machine have to give equal numbers.
    """
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _maker()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _maker() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()[:2000]
    except OSError:
        return platform.processor()


def worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether `x @ weight.T` is fp32 on a CPU, and large enough for another library to pay."""
    if not (x.dtype is weight.dtype is torch.float32 and x.device.type == "cpu"):
        return False
    if weight.ndim != 2 or isinstance(x, FakeTensor) or isinstance(weight, FakeTensor):
        return False
    return x.numel() * weight.shape[0] >= WORTH_IT and onednn_is_faster()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` by oneDNN, without derivative: (..., K), (O, K), (O,) -> (..., O)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(
        _dense(x), _dense(weight), bias, "none", [], ""
    )
    return out


def _dense(x: Tensor) -> Tensor:
    """Rows or columns without gaps; for any other layout oneDNN has only its reference loops."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


class _Linear(torch.autograd.Function):
    """`F.linear` whose three products run in oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.t()) if for_x else None,
            product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if for_weight else None,
            rows.sum(dim=0) if for_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` where `worth_it`: (..., K), (O, K), (O,) -> (..., O)."""
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


def exact_products(device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in the operands' own types, whatever autocast and the matmul precision say.

    A compiled graph keeps the precision it runs under.
    """
    if torch.compiler.is_compiling() or torch.get_float32_matmul_precision() == "highest":
        return no_autocast(device)
    return _highest_precision(device)


@contextmanager
def _highest_precision(device: torch.device) -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with no_autocast(device):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Compute in the operands' own types; the meta device knows no autocast."""
    # not `is_autocast_available`, at which torch.compile ends a graph
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
