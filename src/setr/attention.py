"""Attention in bf16 on CPUs: two matrix products and a softmax per head, in blocks of queries.

PyTorch's fused attention kernel for CPUs is no faster in bf16 than in fp32: it converts inside.
Plain products of one head at a time reach the bf16 rate of the matrix library instead, and a block
of scores stays in the cache (measured in docs/decisions.md). Scores are rounded to bf16 before
the softmax, as in unfused attention under autocast; the keys are centred first, which changes no
softmax and makes the scores, and so their rounding, smaller. The softmax sums in fp32. Memory is
linear in the number of tokens: blocks of scores are recomputed in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode

SCORES = 2**21
"""Scores in one block: 4 MiB of bf16."""


class _Attention(torch.autograd.Function):
    """softmax(q k^T * scale) v for (B, h, N, D) queries, (B, h, M, D) keys and values."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = q * scale, k - k.mean(dim=-2, keepdim=True)
        B, h, N, D = q.shape
        out = q.new_empty(B, N, h, D).transpose(1, 2)  # the layout the next projection reads
        for head, rows in _blocks(q, k):
            p = _scores(q, k, head, rows)
            torch.mm(p, v[head], out=out[head][rows])
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for head, rows in _blocks(q, k):
            p = _scores(q, k, head, rows)
            g = grad[head][rows]
            dp = torch.mm(g, v[head].t())
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            torch.mm(ds, k[head], out=dq[head][rows])
            dk[head].addmm_(ds.t(), q[head][rows])
            dv[head].addmm_(p.t(), g)
        return dq.mul_(ctx.scale), dk, dv, None


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[int, int], slice]]:
    """Every (image, head) with blocks of its queries whose scores stay small."""
    if isinstance(q, FakeTensor):
        return  # a rehearsal counts what is kept (memory.py); the loop only costs it time
    B, h, N, _ = q.shape
    step = max(1, min(N, SCORES // k.shape[-2]))
    step = math.ceil(N / math.ceil(N / step))
    for image in range(B):
        for head in range(h):
            for top in range(0, N, step):
                yield (image, head), slice(top, top + step)


def _scores(q: Tensor, k: Tensor, head: tuple[int, int], rows: slice) -> Tensor:
    return torch.softmax(torch.mm(q[head][rows], k[head].t()), dim=-1)


class _Route(TorchFunctionMode):
    """Sends the calls of `scaled_dot_product_attention` that fit to `_Attention`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Every torch call made while the mode is on comes through here."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _fits(*args, **kwargs):
            q, k, v = args
            return _Attention.apply(q, k, v, q.shape[-1] ** -0.5)
        return func(*args, **kwargs)


_ROUTE = _Route()


def _fits(
    *args: Any, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **kwargs: Any
) -> bool:
    plain = len(args) == 3 and attn_mask is None and not dropout_p and not any(kwargs.values())
    return plain and args[0].ndim == 4


def speed_up(block: nn.Module) -> None:
    """Let a module's attention run here wherever it applies; every other call is left alone.

    It applies on CPUs under bf16 autocast, without a mask, dropout or compilation. The module's
    parameters, names and copies stay what they are: the change is a pair of hooks.
    """
    block.register_forward_pre_hook(_enter)
    block.register_forward_hook(_leave, always_call=True)


def _applies() -> bool:
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and not torch.compiler.is_compiling()
    )


def _enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if _applies():
        _ROUTE.__enter__()


def _leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if _applies():
        _ROUTE.__exit__(None, None, None)
