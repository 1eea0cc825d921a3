"""The training loss: cross-entropy or another loss of the main head, plus the auxiliary losses.

The logits come from the decoders without resizing; `row_blocks.py` resizes them block by block.

Shapes: B batch, K classes, h x w logits, H x W target.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import get_args

import torch
from torch import Tensor

from setr.arguments.choices import LossKind
from setr.distributed import say
from setr.errors import UsageError, first_line
from setr.kernels.region_losses import (
    counted_target,
    hard_target,
    pixel_cross_entropy,
    upsample_dice,
    upsample_lovasz,
)
from setr.kernels.row_blocks import Block, upsample_sum, with_gradient
from setr.labels import IGNORE
from setr.layers.mask_classifier import MaskOutput
from setr.layers.outputs import Output
from setr.layers.upsampling import MAX_FINAL_SCALE, upsample
from setr.mask_loss import mask_classification_loss

GAMMA = 2.0
"""Exponent of the focal loss."""
TINY = 1e-30
"""Probability below which its logarithm is too inexact to use."""


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    size: tuple[int, int],
    *,
    weight: Tensor | None = None,
    scale: int = 1,
) -> Tensor:
    """Sum over valid pixels of the cross-entropy of bilinearly resized logits.

    Uses Triton kernels on CUDA if Triton works (`triton_loss.py`), else blocks of rows.

    Args:
        logits: (B, K, h, w), any float dtype; the loss is computed in fp32 (fp64 stays fp64).
        target: (B, H, W) training ids; pixels of `IGNORE` are not counted.
        size: (H', W') the logits are resized to, at least (H, W), and cropped to (H, W).
        weight: (K,) class weights.
        scale: integer factor by which the logits are upsampled before that resize.

    Returns:
        A scalar: the sum, not the mean; 0 (with zero gradient) if no pixel is valid.
    """
    if logits.is_cuda and logits.dtype != torch.float64 and _has_triton():
        from setr.kernels.triton_loss import upsample_cross_entropy as in_one_kernel

        return in_one_kernel(upsample(logits, scale), target, size, weight=weight)

    def cross_entropy(resized: Tensor, truth: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        counted = truth != IGNORE
        share = counted.to(resized.dtype)
        true = truth.where(counted, 0)[..., None]
        if weight is not None:
            share *= weight.to(resized.dtype)[true[..., 0]]
        grad = resized.softmax(-1)  # turned into the gradient in place below
        probability = grad.gather(-1, true)[..., 0]
        loss = -probability.log()
        if (probability < TINY).any():  # too inexact: compute it relative to the largest logit
            exact = resized.amax(-1) - grad.amax(-1).log() - resized.gather(-1, true)[..., 0]
            loss = loss.where(probability >= TINY, exact)
        value = (loss * share).sum()
        grad.scatter_add_(-1, true, grad.new_full((), -1.0).expand(true.shape))
        if weight is not None or not counted.all():
            grad *= share[..., None]
        return value, grad  # softmax - one-hot, for each valid pixel

    return upsample_sum(logits, target, size, cross_entropy, scale=scale)


@functools.cache
def _has_triton() -> bool:
    """Whether Triton is installed and can launch kernels on this GPU, which needs a C compiler."""
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability() < (7, 0):
        return False
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:
        say(
            f"warning: Triton cannot launch kernels here ({first_line(error)}); a slower loss is "
            "used; Triton needs gcc and Python's headers (python3-dev)"
        )
        return False
    return True


def upsample_focal(
    logits: Tensor,
    target: Tensor,
    size: tuple[int, int],
    *,
    gamma: float = GAMMA,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum over valid pixels of (1 - p)^gamma * cross-entropy (Lin et al. 2017, eq. 4).

    p is the probability of the true class. Arguments as `upsample_cross_entropy`.
    """

    def focal(resized: Tensor, truth: Tensor, block: Block) -> Tensor:
        loss = pixel_cross_entropy(resized, truth)
        values = (1 - torch.exp(-loss)).pow(gamma) * loss
        if weight is not None:
            values = values * weight.to(resized.dtype)[truth.where(truth != IGNORE, 0)]
        return values.sum()

    return upsample_sum(logits, target, size, with_gradient(focal))


def count_weight(target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The divisor of a mean over valid pixels: their number, or the sum of their class weights."""
    valid = target != IGNORE
    if weight is None:
        return valid.sum()
    if target.device.type != "cpu":  # boolean indexing would synchronise with the GPU
        return weight.take(target.where(valid, 0).long()).where(valid, 0.0).sum()
    return weight[target[valid].long()].sum()


def segmentation_loss(
    output: Output | MaskOutput | Tensor,
    target: Tensor,
    *,
    normalizer: Tensor | None = None,
    aux_weight: float = 0.4,
    weight: Tensor | None = None,
    kind: LossKind = "cross_entropy",
) -> dict[str, Tensor]:
    """Main loss plus weighted auxiliary losses (paper section 4.1, "Auxiliary loss").

    Args:
        output: logits of the heads before resizing, from `model(images, with_aux=True)`; or logits
            (B, K, h, w) of any model, which are resized to the target. EoMT's `MaskOutput` has its
            own loss, `mask_classification_loss`, without `aux_weight` and `kind`.
        target: (B, H, W) training ids 0 .. K - 1 in any integer type; 255 is ignored. With an
            `Output`, H and W are the images'.
        normalizer: divisor of the sums: `count_weight` over the whole step for a mean over valid
            pixels (accumulation and several processes then equal one large batch), or the number of
            all pixels as in the authors' code. `count_weight` of the target by default.
        aux_weight: weight of each auxiliary loss.
        weight: (K,) class weights; all 1 by default. Pixels of a class of weight 0 do not count, as
            if ignored.
        kind: loss of the main head; auxiliary heads always use cross-entropy. Dice and Lovász are
            added to the cross-entropy. OHEM, Dice and Lovász are means over their pixels or
            classes, scaled by this batch's share of the step.

    Returns:
        `loss` (for one backward pass), and detached `main` and `aux_1`, `aux_2`, …

    Raises:
        SetrError: unknown kind, arguments of another type or shape, or ids that are no class. Only
            on a CPU are ids looked at: on a GPU this would wait for it, and they go unnoticed.
    """
    if kind not in get_args(LossKind):
        raise UsageError(f"kind {kind!r}: give {', '.join(get_args(LossKind))}")
    if isinstance(output, MaskOutput):
        if kind != "cross_entropy":
            raise UsageError(f"kind {kind!r}: EoMT has a loss of its own; leave it out")
        # (B, K, Q): "no object" is not a class of the target
        of_classes = output.stages[-1].classes[..., :-1].transpose(1, 2)
        _require_shapes(of_classes, output, target, weight)
        return mask_classification_loss(output, target, normalizer=normalizer, weight=weight)
    if isinstance(output, Tensor):
        size = tuple(getattr(target, "shape", ()))[-2:]
        output = Output(output, [], size)  # checked next
    if not isinstance(output, Output):
        raise UsageError(
            f"output {type(output).__name__}: give what model(images, with_aux=True) returns, or "
            "logits (B, K, h, w)"
        )
    _require_shapes(output.logits, output, target, weight)
    if normalizer is None:
        normalizer = count_weight(target, weight)
    divisor = normalizer.clamp(min=1e-12)
    means = [_main_loss(output, target, divisor, weight, kind)]
    scale = output.aux_scale
    means += [
        upsample_cross_entropy(logits, target, output.size, weight=weight, scale=scale) / divisor
        for logits in output.aux
    ]
    parts = {"main": means[0].detach()}
    parts.update({f"aux_{i}": m.detach() for i, m in enumerate(means[1:], 1)})
    loss = means[0]
    for mean in means[1:]:
        loss = loss + aux_weight * mean
    return {"loss": loss, **parts}


def _require_shapes(
    logits: Tensor, output: Output | MaskOutput, target: Tensor, weight: Tensor | None
) -> None:
    """Refuse what would be counted against other pixels, images or classes."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        what = f"{target.dtype}" if isinstance(target, Tensor) else type(target).__name__
        raise UsageError(f"target {what}: give a tensor of ids, of an integer type")
    B, K = logits.shape[:2]
    given = tuple(target.shape[-2:])
    if output.image_size is None:
        # the size covered exceeds the image's by less than a patch
        beyond = [wide - n for wide, n in zip(output.size, given, strict=False)]
        fits, known = all(0 <= b < MAX_FINAL_SCALE for b in beyond), " in whole patches"
    else:
        fits, known = given == output.image_size, ""
    if target.ndim != 3 or len(target) != B or not fits:
        H, W = output.image_size or output.size
        raise UsageError(
            f"target {tuple(target.shape)}: give ids (B, H, W) of the {B} images, at their size "
            f"({H}x{W}{known})"
        )
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != (K,)):
        shown = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise UsageError(f"weight {shown}: give one for each of {K} classes, a tensor")
    if target.device.type == "cpu":
        ids = target if target.dtype == torch.uint8 else target.long()
        strange = (ids >= K) & (ids != IGNORE) | (ids < 0)
        if strange.any():
            raise UsageError(
                f"target has id {ids[strange][0].item()}: the output has {K} classes; give 0 to "
                f"{K - 1}, and {IGNORE} to ignore"
            )


def _main_loss(
    output: Output, target: Tensor, divisor: Tensor, weight: Tensor | None, kind: LossKind
) -> Tensor:
    logits, size = output.logits, output.size
    if kind == "focal":
        return upsample_focal(logits, target, size, weight=weight) / divisor
    counted = target if kind == "cross_entropy" else counted_target(target, weight)
    if kind == "ohem":
        hard = hard_target(logits, counted, size)
        share = count_weight(target, weight) / divisor
        kept = count_weight(hard, weight).clamp(min=1e-12)
        return upsample_cross_entropy(logits, hard, size, weight=weight) * (share / kept)
    loss = upsample_cross_entropy(logits, target, size, weight=weight) / divisor
    if kind == "cross_entropy":
        return loss
    added = upsample_dice if kind == "dice" else upsample_lovasz
    return loss + count_weight(target, weight) / divisor * added(logits, counted, size)
