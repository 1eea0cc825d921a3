"""Batch norm, ReLU and a classifier that keep only the map before them for the backward pass.

PUP ends with these three layers on the largest map of the network: 134 MB for two 512 px images in
fp32. As layers they keep it twice, before the norm and after the ReLU, and the backward pass puts
two gradients of that size beside it. They treat every pixel alone, but for the norm's sums over
pixels, so here the backward pass goes by blocks of pixels that fit the caches, twice: the first
time what the ReLU gave is made again, its gradient goes to the result and into the sums, the second
time the sums are spread over it. Nothing else of that size exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 1 << 19
"""Elements of a block; 2 MB in fp32."""


def normalised(x: Tensor, norm: nn.Module, classifier: nn.Conv2d | None = None) -> Tensor:
    """`classifier(relu(norm(x)))`: (B, C, h, w) -> (B, C or K, h, w).

    A batch norm learns from the batch as it does on its own.

    Args:
        x: the map.
        norm: batch norm of C channels; the layers one by one if it is of another kind.
        classifier: 1x1 convolution to K channels, or nothing.
    """
    if type(norm) is not nn.BatchNorm2d or not norm.training:
        y: Tensor = F.relu_(norm(x))
        return y if classifier is None else classifier(y)
    weight = bias = None
    if classifier is not None:
        weight, bias, device = classifier.weight, classifier.bias, x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    out: Tensor = _Normalised.apply(x, norm.weight, norm.bias, weight, bias, norm)
    return out


class _Normalised(torch.autograd.Function):
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
            x, scale, shift, norm.running_mean, norm.running_var, True, _share(norm), norm.eps
        )
        ctx.save_for_backward(x, scale, shift, weight, mean, inverse)
        y = F.relu_(y)
        return y if weight is None else F.conv2d(y.to(weight.dtype), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale, shift, weight, *figures = ctx.saved_tensors
        # kernels give fp32 here for maps in bf16, rehearsals on fake tensors bf16
        mean, inverse = (figure[:, None].to(scale.dtype) for figure in figures)
        slope, shift = scale[:, None] * inverse, shift[:, None]
        of_x, w = torch.empty_like(x), None if weight is None else weight.flatten(1)
        of_scale, of_shift = torch.zeros_like(slope), torch.zeros_like(slope)
        of_w = None if w is None else torch.zeros_like(w, dtype=slope.dtype)
        for some, g, out in _blocks(x, grad, of_x):
            centred = some - mean
            y = (centred * slope).add_(shift).relu_()
            if w is not None:
                of_w += g @ y.to(w.dtype).t()
                g = w.t() @ g
            g = torch.ops.aten.threshold_backward(g.to(y.dtype), y, 0)
            of_shift += g.sum(1, keepdim=True)
            of_scale += torch.linalg.vecdot(g, centred)[:, None]
            out.copy_(g)
        of_scale *= inverse
        # dx = slope * (g - mean(g) - xhat * mean(g * xhat)), xhat = (x - mean) * inverse
        count = x.numel() // x.shape[1]
        tilt = -slope * inverse * of_scale / count
        level = -slope * of_shift / count - tilt * mean
        for some, out in _blocks(x, of_x):
            torch.add(out * slope, (some * tilt).add_(level), out=out)
        of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        if of_w is not None:
            of_w = of_w.to(weight.dtype).view_as(weight)
        return of_x, of_scale[:, 0], of_shift[:, 0], of_w, of_bias, None


def _share(norm: nn.BatchNorm2d) -> float:
    """What this batch weighs in the running figures, which are told of it."""
    if norm.num_batches_tracked is None:
        return 0.0
    norm.num_batches_tracked.add_(1)
    return 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _blocks(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of pixels of maps (B, any, h, w) as views (any, pixels); their size is that of x's."""
    pixels = max(BLOCK // x.shape[1], 1)
    maps = [m.flatten(2) for m in (x, *others)]
    for image in zip(*maps, strict=True):
        yield from zip(*(m.split(pixels, dim=1) for m in image), strict=True)
