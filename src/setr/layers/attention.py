"""Attention on CPUs: two matrix products and a softmax per head, in blocks of queries.

PyTorch's fused CPU kernel is no faster in bf16 than in fp32: it converts internally and multiplies
with MKL. Separate matrix products for each head run at the speed of the fastest library
(`products.py` in fp32), and a block of scores stays in the cache (measured in docs/decisions.md).
In bf16 the scores are rounded before the softmax, as in unfused attention under autocast. Keys are
centred first: the softmax stays the same, but scores and so their rounding errors get smaller. The
softmax sums in fp32. Memory is linear in the number of tokens: blocks of scores are recomputed in
the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from setr.layers.products import product

SCORES = {torch.bfloat16: 2**21, torch.float32: 2**19}
"""Attention scores per block: 4 MiB in bf16, 2 MiB in fp32."""


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v: (B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E).

    Computed in bf16 under bf16 autocast, else in fp32 with oneDNN. The scale is 1 / sqrt(D) if None
    is given.
    """
    return _Attention.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)


class _Attention(torch.autograd.Function):
    """softmax(q k^T * scale) v for (B, h, N, D) queries, (B, h, M, D) keys, (B, h, M, E) values."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = q * scale, k - k.mean(dim=-2, keepdim=True)
        if q.dtype is torch.float32:  # oneDNN needs each head to be contiguous
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        B, h, N, _ = q.shape
        # the layout that the next projection reads
        out = q.new_empty(B, N, h, v.shape[-1]).transpose(1, 2)
        for head, rows in _blocks(q, k):
            _mm(_scores(q, k, head, rows), v[head], out[head][rows])
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        if q.dtype is torch.float32:
            grad = grad.contiguous()
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for head, rows in _blocks(q, k):
            p = _scores(q, k, head, rows)
            g = grad[head][rows]
            dp = _mm(g, v[head].t())
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            _mm(ds, k[head], dq[head][rows])
            _add_mm(dk[head], ds.t(), q[head][rows])
            _add_mm(dv[head], p.t(), g)
        return dq.mul_(ctx.scale), dk, dv, None


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[int, int], slice]]:
    """Each (image, head) with each block of its queries, at most `SCORES` scores at a time."""
    if isinstance(q, FakeTensor):
        return  # memory estimation (memory.py) only counts saved tensors; the loop is not needed
    B, h, N, _ = q.shape
    step = max(1, min(N, SCORES[q.dtype] // k.shape[-2]))
    step = math.ceil(N / math.ceil(N / step))
    for image in range(B):
        for head in range(h):
            for top in range(0, N, step):
                yield (image, head), slice(top, top + step)


def _scores(q: Tensor, k: Tensor, head: tuple[int, int], rows: slice) -> Tensor:
    return torch.softmax(_mm(q[head][rows], k[head].t()), dim=-1)


def _mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    if a.dtype is torch.float32:
        result = product(a, b.t())
        return result if out is None else out.copy_(result)
    return torch.mm(a, b, out=out)


def _add_mm(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype is torch.float32:
        total += product(a, b.t())
    else:
        total.addmm_(a, b)
