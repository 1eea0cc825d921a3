"""Per-pixel losses of resized logits, computed in blocks of rows.

Training with five heads and 150 classes at 512x512 would store gigabytes of resized logits. Here
one block of output pixels at a time is resized and turned into loss and gradient; only the gradient
at the decoder's scale is kept. Values and gradients equal those of `F.interpolate` (bilinear)
followed by the loss.

Two things make it faster than calling those functions block by block. Bilinear resizing is a
product with a narrow matrix along each axis, and its gradient the product with the transpose. And
classes are the last dimension, so that a pixel's softmax reads contiguous memory.

Shapes: B batch, K classes, h x w logits, H x W target, r x c pixels of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from setr.errors import SetrError
from setr.layers.products import exact_products

BLOCK_BYTES = 1 << 20  # of resized logits per block and thread; fits the L2 cache
BLOCK_COLUMNS = 64  # on CPUs; wider blocks need larger matrices along the columns
DEVICE_BLOCK_BYTES = 128 << 20  # on other devices, where few large operations are faster

BlockLoss = Callable[[Tensor, Tensor, "Block"], Tensor]
"""Logits (B, r, c, K) and target (B, r, c) of a block -> sum over its pixels."""
PixelLoss = Callable[[Tensor, Tensor, "Block"], tuple[Tensor, Tensor]]
"""As `BlockLoss`, also returning the gradient of the sum with respect to the logits."""


def upsample_sum(
    logits: Tensor, target: Tensor, size: tuple[int, int], pixel_loss: PixelLoss, *, scale: int = 1
) -> Tensor:
    """Sum of a per-pixel loss of logits that are upsampled by `scale` and resized to `size`."""
    return _UpsampleSum.apply(logits, target, size, pixel_loss, scale)


def with_gradient(function: BlockLoss) -> PixelLoss:
    """Make a `PixelLoss` of a `BlockLoss`, with the gradient from autograd."""

    def pixel_loss(resized: Tensor, truth: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            value = function(resized.requires_grad_(), truth, block)
            return value.detach(), torch.autograd.grad(value, resized)[0]

    return pixel_loss


class _UpsampleSum(torch.autograd.Function):
    """Computes the gradient block by block in the forward pass; `backward` only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        size: tuple[int, int],
        pixel_loss: PixelLoss,
        scale: int,
    ) -> Tensor:
        x = classes_last(logits)
        grad = torch.zeros_like(x) if logits.requires_grad else None
        # a running sum: small tensors kept for every block would fragment the heap between blocks
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for block in row_blocks(x, target, size, scale=scale):
            truth = target[:, block.rows, block.columns].long()
            part, block_grad = pixel_loss(block.resized, truth, block)
            total += part
            if grad is not None:
                block.add_gradient(grad, block_grad)
        if grad is not None:
            ctx.dtype = logits.dtype
            ctx.save_for_backward(saved_gradient(grad, ctx.dtype))
        return total.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        refuse_second_derivative()
        (grad,) = ctx.saved_tensors
        # multiply in full precision: the factor alone underflows fp16
        scaled = (grad.to(grad_output.dtype) * grad_output).to(ctx.dtype)
        return scaled, None, None, None, None


def refuse_second_derivative() -> None:
    """Refuse a backward pass with `create_graph`, to which a kept gradient looks like a constant.

    Raises:
        SetrError: there is such a pass.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise SetrError(
            "create_graph: this loss has no second derivative; differentiate F.cross_entropy of "
            "logits at the target's size"
        )


@dataclass(frozen=True)
class Block:
    """A block of resized logits.

    Attributes:
        rows: rows of the output.
        columns: columns of the output.
        resized: (B, r, c, K) resized logits.
    """

    rows: slice
    columns: slice
    resized: Tensor
    _source: tuple[slice, slice]
    _weights: tuple[Tensor, Tensor]

    def add_gradient(self, grad: Tensor, block_grad: Tensor) -> None:
        """Add the gradient with respect to `resized` to that of the logits, (B, h, w, K)."""
        with exact_products(grad.device):
            narrow = self._weights[1].T @ block_grad
            grad[:, self._source[0], self._source[1]] += _rows(self._weights[0].T, narrow)


def block_bytes(device: torch.device) -> int:
    """Maximum size of a block of logits on a device."""
    return BLOCK_BYTES * torch.get_num_threads() if device.type == "cpu" else DEVICE_BLOCK_BYTES


def row_blocks(
    x: Tensor, target: Tensor, size: tuple[int, int], *, scale: int = 1
) -> Iterator[Block]:
    """Logits (B, h, w, K), upsampled and resized to `size`, in blocks that cover the target.

    Both steps are one product, with the product of their matrices.
    """
    B, h, w, K = x.shape
    H, W = target.shape[-2:]
    c = min(W, BLOCK_COLUMNS) if x.device.type == "cpu" else W
    r = min(H, max(1, block_bytes(x.device) // (B * c * K * x.element_size())))
    across = [
        (slice(left, min(left + c, W)), *_axis(left, min(left + c, W), w, size[1], x, scale))
        for left in range(0, W, c)
    ]
    for top in range(0, H, r):
        rows = slice(top, min(top + r, H))
        y, down = _axis(rows.start, rows.stop, h, size[0], x, scale)
        for columns, z, along in across:
            with exact_products(x.device):
                resized = along @ _rows(down, x[:, y, z])
            yield Block(rows, columns, resized, (y, z), (down, along))


def classes_last(logits: Tensor) -> Tensor:
    """Detached logits (B, K, h, w) as (B, h, w, K) in fp32, or fp64 if they are fp64."""
    x = logits.detach().permute(0, 2, 3, 1)
    return (x if x.dtype == torch.float64 else x.float()).contiguous()


def saved_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient (B, h, w, K) -> (B, K, h, w) in the logits' dtype, as saved for the backward pass.

    It keeps its own dtype for fp16, in which gradients of a mean underflow before loss scaling.
    """
    return grad.permute(0, 3, 1, 2).to(grad.dtype if dtype is torch.float16 else dtype)


def _rows(weights: Tensor, x: Tensor) -> Tensor:
    """Apply weights (m, n) along the rows of x: (B, n, c, K) -> (B, m, c, K).

    Along the columns, (B, r, n, K) -> (B, r, m, K), it is `weights @ x`.
    """
    B, _, c, K = x.shape
    return torch.matmul(weights, x.flatten(2)).view(B, -1, c, K)


def _axis(first: int, last: int, n: int, N: int, like: Tensor, scale: int) -> tuple[slice, Tensor]:
    """The inputs for outputs first .. last-1 of an axis, and their weights (outputs, inputs).

    The axis is upsampled from n to scale * n and resized from there to N.
    """
    if scale != 1:
        middle, outer = _axis(first, last, scale * n, N, like, 1)
        inputs, inner = _axis(middle.start, middle.stop, n, scale * n, like, 1)
        with exact_products(like.device):
            return inputs, outer @ inner
    lower, upper, exact = source_rows(first, last, n, N)
    start, share = int(lower[0]), exact.to(like.dtype)
    weights = share.new_zeros(last - first, int(upper[-1]) + 1 - start)
    number = torch.arange(last - first)
    weights[number, lower - start] = 1 - share
    weights[number, upper - start] += share
    return slice(start, start + weights.shape[1]), weights.to(like.device, non_blocking=True)


def source_rows(top: int, bottom: int, h: int, H: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear source rows of output rows top .. bottom-1: lower and upper index, upper weight.

    int64 and fp64 on the CPU, so that indices are read without a sync.
    """
    rows = torch.arange(top, bottom, dtype=torch.float64)
    centre = ((rows + 0.5) * (h / H) - 0.5).clamp(0, h - 1)
    lower = centre.long()
    return lower, (lower + 1).clamp(max=h - 1), centre - lower
