"""Batch norm, ReLU and classifier as one operation that saves only its input for backward.

PUP ends with these three layers on the largest map of the network: 134 MB for two 512 px images in
fp32. As separate layers they save it twice, before the norm and after the ReLU, and the backward
pass allocates two gradients of that size. But apart from the norm's sums over pixels, every pixel
is independent. So this backward pass runs twice over blocks of pixels that fit the caches: the
first pass recomputes the ReLU's output, writes its gradient to the result and accumulates the sums;
the second pass applies the sums. No other tensor of that size is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 1 << 19
"""Elements per block; 2 MB in fp32."""


def norm_relu(x: Tensor, norm: nn.Module, classifier: nn.Conv2d | None = None) -> Tensor:
    """`classifier(relu(norm(x)))`: (B, C, h, w) -> (B, C or K, h, w).

    The norm's running statistics are updated as usual.

    Args:
        norm: batch norm over C channels; for other norms and in eval mode, the separate layers run,
            and for a single pixel, of which they refuse the variance.
        classifier: 1x1 convolution to K channels; None for none.
    """
    single = x.numel() == x.shape[1]
    if type(norm) is not nn.BatchNorm2d or not norm.training or single:
        y: Tensor = F.relu_(norm(x))
        return y if classifier is None else classifier(y)
    weight = bias = None
    if classifier is not None:
        weight, bias, device = classifier.weight, classifier.bias, x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return _NormReLU.apply(x, norm.weight, norm.bias, weight, bias, norm)


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: nn.BatchNorm2d,
    ) -> Tensor:
        y, mean, inverse = torch.native_batch_norm(
            x, scale, shift, norm.running_mean, norm.running_var, True, _momentum(norm), norm.eps
        )
        ctx.save_for_backward(x, scale, shift, weight, mean, inverse)
        y = F.relu_(y)
        return y if weight is None else F.conv2d(y.to(weight.dtype), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale, shift, weight, *statistics = ctx.saved_tensors
        # for maps in bf16, kernels return fp32 statistics and fake tensors bf16 ones
        mean, inv_std = (value[:, None].to(scale.dtype) for value in statistics)
        slope, shift = scale[:, None] * inv_std, shift[:, None]
        grad_x = torch.empty_like(x, memory_format=_layout(x))
        w = None if weight is None else weight.flatten(1)
        grad_scale, grad_shift = torch.zeros_like(slope), torch.zeros_like(slope)
        grad_w = None if w is None else torch.zeros_like(w, dtype=slope.dtype)
        for block, g, out in _blocks(x, grad, grad_x):
            centred = block - mean
            y = (centred * slope).add_(shift).relu_()
            if w is not None:
                grad_w += g @ y.to(w.dtype).t()
                g = w.t() @ g
            g = torch.ops.aten.threshold_backward(g.to(y.dtype), y, 0)
            grad_shift += g.sum(1, keepdim=True)
            grad_scale += torch.linalg.vecdot(g, centred)[:, None]
            out.copy_(g)
        grad_scale *= inv_std
        # dx = slope * (g - mean(g) - xhat * mean(g * xhat)), xhat = (x - mean) * inv_std
        #    = slope * g + (a * x + b)
        count = x.numel() // x.shape[1]
        a = -slope * inv_std * grad_scale / count
        b = -slope * grad_shift / count - a * mean
        for block, out in _blocks(x, grad_x):
            torch.add(out * slope, (block * a).add_(b), out=out)
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        if grad_w is not None:
            grad_w = grad_w.to(weight.dtype).view_as(weight)
        return grad_x, grad_scale[:, 0], grad_shift[:, 0], grad_w, grad_bias, None


def _momentum(norm: nn.BatchNorm2d) -> float:
    """Weight of this batch in the running statistics; counts the batch as `BatchNorm2d` does."""
    if norm.num_batches_tracked is None:
        return 0.0
    norm.num_batches_tracked.add_(1)
    return 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _layout(x: Tensor) -> torch.memory_format:
    """The layout of a map, or one whose pixels are one axis: others would flatten to a copy."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _blocks(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views (channels, pixels) of the same pixels of all maps (B, any, h, w), block by block.

    A block has `BLOCK` elements of x.
    """
    pixels = max(BLOCK // x.shape[1], 1)
    maps = [m.flatten(2) for m in (x, *others)]
    for image in zip(*maps, strict=True):
        yield from zip(*(m.split(pixels, dim=1) for m in image), strict=True)
