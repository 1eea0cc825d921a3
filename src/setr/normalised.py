"""Batch norm, ReLU and a classifier that keep only the map before them for the backward pass.

PUP ends with these three layers on the largest map of the network: 134 MB for two 512 px images in
fp32. As layers they keep it twice, before the norm and after the ReLU, and the backward pass puts
two gradients of that size beside it. They treat every channel alone or sum over channels, so here
the backward pass goes by groups of channels: what the ReLU gave is made again for a group, its
gradient takes its place in the result, and nothing else of that size exists.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32
"""Channels of a group."""


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
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.eps = norm.eps
        y: Tensor = F.relu_(norm(x))
        return y if weight is None else F.conv2d(y.to(weight.dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale, shift, weight = ctx.saved_tensors
        of_x, of_scale, of_shift = (torch.empty_like(t) for t in (x, scale, shift))
        of_weight = None if weight is None else torch.empty_like(weight)
        for first in range(0, x.shape[1], GROUP):
            at = slice(first, first + GROUP)
            some = None if weight is None else weight[:, at]
            whole = grad[:, at] if weight is None else grad
            of_x[:, at], of_scale[at], of_shift[at], of_some = _backward_of_group(
                whole, x[:, at].contiguous(), scale[at], shift[at], some, ctx.eps
            )
            if of_weight is not None and of_some is not None:
                of_weight[:, at] = of_some
        of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        return of_x, of_scale, of_shift, of_weight, of_bias, None


def _backward_of_group(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of a group of channels: of the map, the norm's two vectors and the weight."""
    y, mean, inverse = torch.native_batch_norm(x, scale, shift, None, None, True, 0.0, eps)
    y, of_weight = F.relu_(y), None
    if weight is None:
        grad = grad.masked_fill(y <= 0, 0)
    else:
        grad, of_weight = _backward_of_classifier(grad, y, weight)
        grad.masked_fill_(y <= 0, 0)
    grad = grad.to(x.dtype)
    del y  # before the next map of its size
    of_x, of_scale, of_shift = torch.ops.aten.native_batch_norm_backward(
        grad, x, scale, None, None, mean, inverse, True, eps, (True, True, True)
    )
    return of_x, of_scale, of_shift, of_weight


def _backward_of_classifier(grad: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a 1x1 convolution's input and weight.

    As matrix products: the library's convolution lays the whole gradient out anew for every group.
    """
    y, w = y.to(weight.dtype), weight.flatten(1)
    of_y, of_weight = torch.empty_like(y), torch.zeros_like(w)
    for g, image, out in zip(grad.flatten(2), y.flatten(2), of_y.flatten(2), strict=True):
        torch.mm(w.t(), g, out=out)
        of_weight += g @ image.t()
    return of_y, of_weight.view_as(weight)
