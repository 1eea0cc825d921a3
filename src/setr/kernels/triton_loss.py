"""Upsampling and cross-entropy in Triton kernels, the CUDA version of `row_blocks.py`.

A cell is the set of output pixels that are interpolated from the same four source pixels, its
corners. The first kernel resizes logits in registers and stores the log-sum-exp of each pixel. The
second resizes them again and sums the gradients of a cell's pixels for each of its corners. The
third adds up, for each source pixel, the sums of the cells around it. So there are no atomic
additions, and results are deterministic. Interpolation positions are passed as arrays, so any scale
factor works, up or down.

Import only if Triton is installed; `losses.py` checks that.

Shapes: B batch, K classes, h x w logits, H x W target. The sums of an image: groups of R rows of
cells, R + 1 source rows in each, left and right corners, w, K.
"""

# mypy: disable-error-code=no-untyped-def
# (the kernels take pointers and compile-time constants, for which Python has no types)

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from setr.kernels.row_blocks import refuse_second_derivative, source_rows
from setr.labels import IGNORE

LOG2_E = tl.constexpr(1.4426950408889634)
PIXELS = 16  # of a cell's row at a time, maximum
CLASSES = 16  # of a pixel at a time, maximum
TILE = 256  # pixels times classes of a warp, eight per thread
SUMMED = 8  # classes of a program of the gradient kernel, maximum
LINES = 16  # output rows of a program of the gradient kernel, or one row of cells
ENTRIES = 512  # of the gradient that a program of the third kernel adds up
SUMS_BYTES = 128 << 20  # of the cells' sums at a time; at least one image


@triton.jit
def _loss_kernel(
    logits, target, weight, y_low, y_share, x_begin, x_share, lse_out, loss_out,
    h, w, H, W, K: tl.constexpr, ignore: tl.constexpr, weighted: tl.constexpr,
    Q: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Per pixel: log-sum-exp of the resized logits, and the weighted cross-entropy.

    The former is infinite for ignored pixels, so that their softmax is zero. A program computes the
    pixels of an output row in S cells, Q of each cell at a time, and C classes at a time.
    """
    y, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * S + tl.arange(0, S)
    begin, end = tl.load(x_begin + j, j < w, 0), tl.load(x_begin + j + 1, j < w, 0)
    i, v = tl.load(y_low + y), tl.load(y_share + y)
    upper = logits + (b * h + i) * w * K
    lower = logits + (b * h + tl.minimum(i + 1, h - 1)) * w * K
    line = (b * H + y) * W
    for q in range(0, tl.max(end - begin, axis=0), Q):
        x = begin[None, :] + q + tl.arange(0, Q)[:, None]
        inside = x < end[None, :]
        u = tl.load(x_share + x, inside, 0.0)[:, :, None]
        truth = tl.load(target + line + x, inside, ignore)
        counted = truth != ignore
        top = tl.full((Q, S), float("-inf"), tl.float32)
        total, true = tl.zeros((Q, S), tl.float32), tl.zeros((Q, S), tl.float32)
        for first in range(0, K, C):
            k = first + tl.arange(0, C)
            ok = (j < w)[:, None] & (k < K)[None, :]
            at = j[:, None] * K + k[None, :]
            beside = tl.minimum(j + 1, w - 1)[:, None] * K + k[None, :]
            nw = tl.load(upper + at, ok, 0.0).to(tl.float32)
            ne = tl.load(upper + beside, ok, 0.0).to(tl.float32)
            sw = tl.load(lower + at, ok, 0.0).to(tl.float32)
            se = tl.load(lower + beside, ok, 0.0).to(tl.float32)
            z_left, z_right = nw + (sw - nw) * v, ne + (se - ne) * v
            z = z_left[None, :, :] + (z_right - z_left)[None, :, :] * u
            label = k[None, None, :]
            true += tl.sum(tl.where(label == truth[:, :, None], z, 0.0), axis=2)
            z = tl.where(label < K, z, float("-inf"))
            new = tl.maximum(top, tl.max(z, axis=2))
            total *= tl.exp(top - new)
            total += tl.sum(tl.exp2((z - new[:, :, None]) * LOG2_E), axis=2)
            top = new
        rest = tl.log(total)
        loss = top - true + rest  # exact for large logits, too
        if weighted:
            loss *= tl.load(weight + truth, counted, 0.0)
        tl.store(lse_out + line + x, tl.where(counted, top + rest, float("inf")), inside)
        tl.store(loss_out + line + x, tl.where(counted, loss, 0.0), inside)


@triton.jit
def _cells_kernel(
    logits, target, weight, y_begin, y_share, x_begin, x_share, lse_in, sums_out,
    h, w, H, W, K: tl.constexpr, ignore: tl.constexpr, weighted: tl.constexpr,
    R: tl.constexpr, Q: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Per R rows and S columns of cells and C classes: sums of gradients for the cells' corners.

    Computes Q columns of each cell at a time. Sums of adjacent rows of cells for the source row
    between them are added up here.
    """
    chunks: tl.constexpr = (K + C - 1) // C
    group, first, b = tl.program_id(0), tl.program_id(1) * R, tl.program_id(2).to(tl.int64)
    j, k = group // chunks * S + tl.arange(0, S), group % chunks * C + tl.arange(0, C)
    begin, end = tl.load(x_begin + j, j < w, 0), tl.load(x_begin + j + 1, j < w, 0)
    most = tl.max(end - begin, axis=0)
    ok = (j < w)[:, None] & (k < K)[None, :]
    label = tl.where(k == ignore, -1, k)[None, None, :]
    at = j[:, None] * K + k[None, :]
    beside = tl.minimum(j + 1, w - 1)[:, None] * K + k[None, :]
    image, labels, lses = logits + b * h * w * K, target + b * H * W, lse_in + b * H * W
    row = image + first * w * K
    nw = tl.load(row + at, ok, 0.0).to(tl.float32)
    ne = tl.load(row + beside, ok, 0.0).to(tl.float32)
    below_left, below_right = tl.zeros((S, C), tl.float32), tl.zeros((S, C), tl.float32)
    place = sums_out + (b * tl.num_programs(1) + tl.program_id(1)) * (R + 1) * 2 * w * K
    for i in range(first, tl.minimum(first + R, h)):
        row = image + tl.minimum(i + 1, h - 1) * w * K
        sw = tl.load(row + at, ok, 0.0).to(tl.float32)
        se = tl.load(row + beside, ok, 0.0).to(tl.float32)
        left, right = below_left, below_right
        below_left, below_right = tl.zeros((S, C), tl.float32), tl.zeros((S, C), tl.float32)
        top, bottom = tl.load(y_begin + i), tl.load(y_begin + i + 1)
        for q in range(0, most, Q):
            x = begin[None, :] + q + tl.arange(0, Q)[:, None]
            inside = (x < end[None, :])[:, :, None]
            x = tl.maximum(tl.minimum(x, end[None, :] - 1), 0)
            u = tl.load(x_share + x)[:, :, None]
            above, below = tl.zeros((Q, S, C), tl.float32), tl.zeros((Q, S, C), tl.float32)
            for y in range(top, bottom):
                v, pixel = tl.load(y_share + y), y * W + x
                truth, lse = tl.load(labels + pixel), tl.load(lses + pixel)
                z_left, z_right = nw + (sw - nw) * v, ne + (se - ne) * v
                z = z_left[None, :, :] + (z_right - z_left)[None, :, :] * u
                slope = tl.exp2((z - lse[:, :, None]) * LOG2_E)
                slope -= tl.where(label == truth[:, :, None], 1.0, 0.0)
                if weighted:
                    slope *= tl.load(weight + truth, truth != ignore, 0.0)[:, :, None]
                above += slope * (1.0 - v)
                below += slope * v
            above, below = tl.where(inside, above, 0.0), tl.where(inside, below, 0.0)
            left += tl.sum(above * (1.0 - u), axis=0)
            right += tl.sum(above * u, axis=0)
            below_left += tl.sum(below * (1.0 - u), axis=0)
            below_right += tl.sum(below * u, axis=0)
        tl.store(place + at, left, ok)
        tl.store(place + w * K + at, right, ok)
        place += 2 * w * K
        nw, ne = sw, se
    tl.store(place + at, below_left, ok)
    tl.store(place + w * K + at, below_right, ok)


@triton.jit
def _gather_kernel(
    sums_in, scale_in, grad_out, h, w, K: tl.constexpr, R: tl.constexpr, E: tl.constexpr
):
    """Per source pixel and class: the sum over the cells around it, times the scale."""
    i, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = w * K
    e = tl.program_id(0) * E + tl.arange(0, E)
    inside = e < row
    groups = (h + R - 1) // R
    place = sums_in + ((b * groups + i // R) * (R + 1) + i % R) * 2 * row + e
    total = _left_and_right(place, e, inside, row, K)
    # the first row of a group also gets the last sums of the group before
    shared = tl.where(i % R == 0, tl.minimum(i, 1) * row, 0)
    total += _left_and_right(place - 2 * row, e, e < shared, row, K)
    total *= tl.load(scale_in)
    tl.store(grad_out + (b * h + i) * row + e, total.to(grad_out.dtype.element_ty), inside)


@triton.jit
def _left_and_right(place, e, ok, row, K: tl.constexpr):
    """Sums for a source pixel as left corner, and as right corner of the cell to its left."""
    return tl.load(place, ok, 0.0) + tl.load(place + row - K, ok & (e >= K), 0.0)


def upsample_cross_entropy(
    logits: Tensor, target: Tensor, size: tuple[int, int], *, weight: Tensor | None = None
) -> Tensor:
    """As `losses.upsample_cross_entropy`, for fp32, bf16 and fp16 logits."""
    with torch.cuda.device_of(logits):  # Triton launches kernels on the current device
        total: Tensor = _UpsampleCrossEntropy.apply(logits, target, size, weight)
    return total


class _UpsampleCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, size: tuple[int, int], weight: Tensor | None
    ) -> Tensor:
        x = logits.detach().permute(0, 2, 3, 1).contiguous()
        B, h, w, K = x.shape
        H, W = target.shape[-2:]
        truth = target.contiguous().to(torch.int32)
        scales = x.new_ones(1) if weight is None else weight
        scales = scales.float().contiguous()
        rows = _axis(H, h, size[0], x.device)
        columns = _axis(W, w, size[1], x.device)
        inputs = (x, truth, scales)
        sizes = (h, w, H, W, K, IGNORE, weight is not None)
        lse, losses = (x.new_empty(B, H, W, dtype=torch.float32) for _ in range(2))
        _, Q, S, C = _tile(w, K, (size[0] / h, size[1] / w), CLASSES)
        _loss_kernel[(triton.cdiv(w, S), H, B)](
            *inputs, rows.lower, rows.share, columns.begin, columns.share, lse, losses, *sizes,
            Q, S, C, num_warps=1,
        )  # fmt: skip
        ctx.save_for_backward(*inputs, rows.begin, rows.share, columns.begin, columns.share, lse)
        ctx.sizes, ctx.size = sizes, size
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        refuse_second_derivative()
        x, truth, scales, *positions, lse = ctx.saved_tensors
        B, h, w, K = x.shape
        R, Q, S, C = _tile(w, K, (ctx.size[0] / h, ctx.size[1] / w), SUMMED)
        groups = triton.cdiv(h, R)
        each = groups * (R + 1) * 2 * w * K
        together = max(1, min(B, SUMS_BYTES // (4 * each)))
        sums = x.new_empty(together, each, dtype=torch.float32)
        grad = torch.empty_like(x)
        factor = grad_output.float().reshape(1)
        for first in range(0, B, together):
            part = slice(first, first + together)
            images = len(x[part])
            grid = (triton.cdiv(w, S) * triton.cdiv(K, C), groups, images)
            _cells_kernel[grid](
                x[part], truth[part], scales, *positions, lse[part], sums, *ctx.sizes,
                R, Q, S, C, num_warps=1,
            )  # fmt: skip
            grid = (triton.cdiv(w * K, ENTRIES), h, images)
            _gather_kernel[grid](sums, factor, grad[part], h, w, K, R, ENTRIES)
        return grad.permute(0, 3, 1, 2), None, None, None


def _tile(w: int, K: int, factors: tuple[float, float], most: int) -> tuple[int, int, int, int]:
    """(R, Q, S, C) of a program: rows of cells, columns of a cell, columns of cells, classes."""
    C = triton.next_power_of_2(min(most, K))
    Q = min(PIXELS, triton.next_power_of_2(math.ceil(factors[1])))
    S = min(TILE // (C * max(2, Q)), triton.next_power_of_2(w))
    return max(1, LINES // math.ceil(factors[0])), Q, S, C


@functools.cache
def _axis(outputs: int, n: int, N: int, device: torch.device) -> _Axis:
    """Cached, since it is the same in every step, and never dropped: CUDA graphs read its memory.

    There are about as many as side lengths, each of some kilobytes.
    """
    with torch.inference_mode(False):  # inference tensors cannot be saved for backward
        return _Axis(outputs, n, N, device)


class _Axis:
    """Interpolation positions along an axis.

    Attributes:
        lower: index of the lower input of each output.
        share: weight of the upper input of each output.
        begin: for each input, the first output whose lower input is it or a later one; one entry
            more than inputs.
    """

    def __init__(self, outputs: int, n: int, N: int, device: torch.device) -> None:
        lower, _, share = source_rows(0, outputs, n, N)
        begin = torch.searchsorted(lower, torch.arange(n + 1))
        self.lower, self.share, self.begin = (
            tensor.to(device, non_blocking=True)
            for tensor in (lower.int(), share.float(), begin.int())
        )
