"""Autocast: its data type on given hardware, and its context."""

from __future__ import annotations

from typing import get_args

import torch

from setr.arguments.choices import Precision
from setr.errors import UsageError


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a precision; None for fp32, without autocast.

    `auto` is bf16 where the hardware supports it natively (CUDA since Ampere, CPUs with AVX512-BF16
    or AMX), else fp16 on CUDA and fp32 on CPUs.

    Raises:
        SetrError: unknown precision, or one that the hardware does not support.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r}: give {', '.join(get_args(Precision))}")
    if precision == "fp32":
        return None
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16: CPUs compute in bf16 or fp32; choose auto")
    has_bf16 = _supports_bf16(device)
    if precision == "bf16" and not has_bf16:
        raise UsageError(f"precision bf16: this {device.type} does not support it; choose auto")
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "fp32"
    return {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def precision_name(dtype: torch.dtype | None) -> str:
    """The precision whose autocast dtype this is: bf16, fp16 or fp32."""
    return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Context of autocast in a dtype, as from `autocast_dtype`; without autocast for None."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _supports_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (  # some builds of torch have no oneDNN, or no operator that reports bf16 support
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
