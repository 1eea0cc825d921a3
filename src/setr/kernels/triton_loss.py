"""Upsample and cross-entropy as two Triton kernels: the CUDA form of `row_blocks.py`.

The first kernel resizes the logits of a pixel in registers and keeps its log-sum-exp, one number a
pixel. The second turns the sum around: a source pixel visits the output pixels that read it,
resizes them again and adds up their gradients, so nothing is added atomically and the result is
the same in every run. Bilinear positions come as arrays, hence any scale factor, up or down.

Import it only where Triton is installed; `losses.py` asks first.

Shapes: B batch, K classes, h x w logits, H x W target.
"""

# mypy: disable-error-code=no-untyped-def
# (the kernels take pointers and compile-time constants, for which Python has no types)

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from setr.kernels.row_blocks import source_rows
from setr.labels import IGNORE

PIXELS = 16  # of a program at a time, at most
CLASSES = 32  # likewise
TILE = 256  # pixels times classes of a warp, of which its threads hold eight each


@triton.jit
def _loss_kernel(
    logits, target, weight, y_low, y_share, x_low, x_share, lse_out, loss_out,
    h, w, H, W, K: tl.constexpr, ignore: tl.constexpr, weighted: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Per pixel: log-sum-exp of the resized logits, and the weighted cross-entropy."""
    b, pixel = tl.program_id(1).to(tl.int64), tl.program_id(0) * P + tl.arange(0, P)
    inside = pixel < H * W
    y, x = pixel // W, pixel % W
    i, v = tl.load(y_low + y, inside, 0), tl.load(y_share + y, inside, 0.0)
    j, u = tl.load(x_low + x, inside, 0), tl.load(x_share + x, inside, 0.0)
    down, right = tl.minimum(i + 1, h - 1), tl.minimum(j + 1, w - 1)
    image = logits + b * h * w * K
    truth = tl.load(target + b * H * W + pixel, inside, ignore)
    counted = inside & (truth != ignore)
    top = tl.full((P,), float("-inf"), tl.float32)
    total, true = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
    for first in range(0, K, C):
        k = first + tl.arange(0, C)
        ok = inside[:, None] & (k < K)[None, :]
        z = _resized(image, i, down, v[:, None], j, right, u[:, None], k, ok, w, K)
        z = tl.where(ok, z, float("-inf"))
        true += tl.sum(tl.where(k[None, :] == truth[:, None], z, 0.0), axis=1)
        new = tl.maximum(top, tl.max(z, axis=1))
        shift = tl.where(inside, new, 0.0)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(z - shift[:, None]), axis=1)
        top = new
    rest = tl.log(tl.where(inside, total, 1.0))
    lse = tl.where(inside, top, 0.0) + rest
    loss = tl.where(counted, top - true, 0.0) + rest  # as exact for large logits as for small ones
    scale = counted.to(tl.float32)
    if weighted:
        scale = tl.load(weight + truth, counted, 0.0)
    tl.store(lse_out + b * H * W + pixel, lse, inside)
    tl.store(loss_out + b * H * W + pixel, tl.where(counted, scale * loss, 0.0), inside)


@triton.jit
def _gradient_kernel(
    logits, target, weight, y_low, y_share, x_low, x_share, y_begin, y_end, x_begin, x_end,
    lse_in, scale_in, grad_out,
    h, w, H, W, K: tl.constexpr, ignore: tl.constexpr, weighted: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Per source pixel and C classes: the sum over the output pixels that read it."""
    b, source = tl.program_id(2).to(tl.int64), tl.program_id(0)
    k = tl.program_id(1) * C + tl.arange(0, C)
    row, column = source // w, source % w
    image, factor = logits + b * h * w * K, tl.load(scale_in)
    left, end = tl.load(x_begin + column), tl.load(x_end + column)
    total = tl.zeros((P, C), tl.float32)
    for y in range(tl.load(y_begin + row), tl.load(y_end + row)):
        i, v = tl.load(y_low + y), tl.load(y_share + y)
        down = tl.minimum(i + 1, h - 1)
        from_row = tl.where(i == row, 1.0 - v, 0.0) + tl.where(down == row, v, 0.0)
        for start in range(left, end, P):
            x = start + tl.arange(0, P)
            inside = x < end
            j, u = tl.load(x_low + x, inside, 0), tl.load(x_share + x, inside, 0.0)
            right = tl.minimum(j + 1, w - 1)
            share = tl.where(j == column, 1.0 - u, 0.0) + tl.where(right == column, u, 0.0)
            truth = tl.load(target + (b * H + y) * W + x, inside, ignore)
            counted = inside & (truth != ignore)
            share = tl.where(counted, share * from_row, 0.0)
            if weighted:
                share *= tl.load(weight + truth, counted, 0.0)
            ok = counted[:, None] & (k < K)[None, :]
            z = _resized(image, i, down, v, j, right, u[:, None], k, ok, w, K)
            lse = tl.load(lse_in + (b * H + y) * W + x, inside, 0.0)
            slope = tl.exp(tl.where(ok, z - lse[:, None], 0.0))
            slope -= tl.where(k[None, :] == truth[:, None], 1.0, 0.0)
            total += slope * share[:, None]
    place = grad_out + (b * h * w + source) * K + k
    tl.store(place, (tl.sum(total, axis=0) * factor).to(grad_out.dtype.element_ty), k < K)


@triton.jit
def _resized(image, i, down, v, j, right, u, k, ok, w, K: tl.constexpr):
    """Bilinear mean of four source pixels, (pixels, classes)."""
    a = tl.load(image + ((i * w + j) * K)[:, None] + k[None, :], ok, 0.0).to(tl.float32)
    b = tl.load(image + ((i * w + right) * K)[:, None] + k[None, :], ok, 0.0).to(tl.float32)
    c = tl.load(image + ((down * w + j) * K)[:, None] + k[None, :], ok, 0.0).to(tl.float32)
    d = tl.load(image + ((down * w + right) * K)[:, None] + k[None, :], ok, 0.0).to(tl.float32)
    upper, lower = a + (b - a) * u, c + (d - c) * u
    return upper + (lower - upper) * v


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    size: tuple[int, int],
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """As `losses.upsample_cross_entropy`, for fp32, bf16 and fp16 logits."""
    total: Tensor = _UpsampleCrossEntropy.apply(logits, target, size, weight)
    return total


class _UpsampleCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        size: tuple[int, int],
        weight: Tensor | None,
    ) -> Tensor:
        x = logits.detach().permute(0, 2, 3, 1).contiguous()
        B, h, w, K = x.shape
        H, W = target.shape[-2:]
        truth = target.contiguous().to(torch.int32)
        scales = x.new_ones(1) if weight is None else weight
        scales = scales.float().contiguous()
        rows = _axis(H, h, size[0], x.device)
        columns = _axis(W, w, size[1], x.device)
        inputs = (x, truth, scales, *rows.positions, *columns.positions)
        sizes = (h, w, H, W, K, IGNORE, weight is not None)
        classes = min(CLASSES, triton.next_power_of_2(K))
        lse, losses = (x.new_empty(B, H, W, dtype=torch.float32) for _ in range(2))
        grid = (triton.cdiv(H * W, PIXELS), B)
        _loss_kernel[grid](*inputs, lse, losses, *sizes, PIXELS, classes, num_warps=_warps(classes))
        ctx.save_for_backward(*inputs, *rows.readers, *columns.readers, lse)
        ctx.sizes, ctx.classes = sizes, classes
        ctx.pixels = triton.next_power_of_2(max(2, min(PIXELS, columns.most)))
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        x = ctx.saved_tensors[0]
        B, h, w, K = x.shape
        grad = torch.empty_like(x)
        grid = (h * w, triton.cdiv(K, ctx.classes), B)
        factor = grad_output.float().reshape(1)
        _gradient_kernel[grid](
            *ctx.saved_tensors, factor, grad, *ctx.sizes, ctx.pixels, ctx.classes,
            num_warps=_warps(ctx.classes),
        )  # fmt: skip
        return grad.permute(0, 3, 1, 2), None, None, None


def _warps(classes: int) -> int:
    """One where it can be: its sums need neither shared memory nor a barrier."""
    return max(1, PIXELS * classes // TILE)


@functools.lru_cache(maxsize=64)
def _axis(outputs: int, n: int, N: int, device: torch.device) -> _Axis:
    """The same from step to step, so it is worked out and sent to the device once."""
    with torch.inference_mode(False):  # tensors made in that mode cannot be kept for a backward
        return _Axis(outputs, n, N, device)


class _Axis:
    """Where the outputs of an axis read, and which outputs read an input.

    Attributes:
        positions: lower input of each output, and the upper input's share.
        readers: first output that reads an input, and the one after the last.
        most: outputs that read one input, at most.
    """

    def __init__(self, outputs: int, n: int, N: int, device: torch.device) -> None:
        lower, _, share = source_rows(0, outputs, n, N)
        number = torch.arange(n)
        begin = torch.searchsorted(lower, number - 1)
        end = torch.searchsorted(lower, number, right=True)

        def moved(*tensors: Tensor) -> list[Tensor]:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]

        self.positions = moved(lower.int(), share.float())
        self.readers = moved(begin.int(), end.int())
        self.most = int((end - begin).max())
