"""Losses that depend on several pixels at once: OHEM, Dice and Lovász, without full-size logits.

OHEM first finds the hard pixels, to which the cross-entropy is then applied. Dice and Lovász need
two passes over the rows: the first computes the value and its derivative with respect to the
probabilities, the second propagates that derivative to the decoder's logits.

Shapes: B batch, K classes, h x w logits, H x W target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.kernels.row_blocks import (
    Block,
    BlockLoss,
    classes_last,
    row_blocks,
    upsample_sum,
    with_gradient,
)
from setr.labels import IGNORE


def counted_target(target: Tensor, weight: Tensor | None) -> Tensor:
    """The target (B, H, W) with pixels of classes of weight 0 ignored; (K,) weights."""
    if weight is None:
        return target
    ids = target.where(target != IGNORE, 0).long()
    return target.where(weight.take(ids) > 0, IGNORE)


@torch.no_grad()
def hard_target(
    logits: Tensor,
    target: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.7,
    min_share: float = 1 / 16,
) -> Tensor:
    """The target with easy pixels ignored: online hard example mining (Shrivastava et al. 2016).

    Hard pixels are those whose true class has a probability below `threshold`, and at least the
    share `min_share` of the valid pixels with the lowest probabilities.

    Args:
        logits: (B, K, h, w).
        target: (B, H, W) training ids.
        size: as in `upsample_cross_entropy`.
        threshold: probability of the true class, 0 to 1.
        min_share: minimum share of hard pixels, 0 to 1.
    """
    x = classes_last(logits)
    probability = x.new_empty(target.shape)
    for block in row_blocks(x, target, size):
        pixels = (slice(None), block.rows, block.columns)
        probability[pixels] = torch.exp(-pixel_cross_entropy(block.resized, target[pixels].long()))
    return hard_pixels(probability, target, threshold=threshold, min_share=min_share)


def hard_pixels(
    probability: Tensor, target: Tensor, *, threshold: float = 0.7, min_share: float = 1 / 16
) -> Tensor:
    """As `hard_target`, from the probability of the true class of every pixel of the target."""
    counted = probability[target != IGNORE]
    keep = int(len(counted) * min_share)
    limit = counted.kthvalue(keep).values if keep else counted.new_zeros(())
    return torch.where((probability < threshold) | (probability <= limit), target, IGNORE)


def pixel_cross_entropy(resized: Tensor, truth: Tensor) -> Tensor:
    """Logits (B, r, c, K) and target (B, r, c) -> loss (B, r, c); 0 for ignored pixels."""
    loss = F.cross_entropy(
        resized.flatten(0, 2), truth.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return loss.view(truth.shape)


def upsample_dice(logits: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over the classes present of 1 - 2 I / (P + Y) (Milletari et al. 2016, unsquared).

    I is the sum of a class's probabilities over its own pixels, P over all valid pixels; Y is the
    number of its own pixels. Arguments as `upsample_cross_entropy`.
    """
    K = logits.shape[1]
    x = classes_last(logits)
    sums = x.new_zeros(2, K)  # I, P
    number = class_counts(target, K).to(sums)
    with torch.no_grad():
        for block in row_blocks(x, target, size):
            truth = target[:, block.rows, block.columns].long()
            sums += torch.stack(_probability_sums(block.resized, truth))
    sums.requires_grad_()
    with torch.enable_grad():
        value = dice_of_sums(sums, number)
        grad = torch.autograd.grad(value, sums)[0]

    def linear(resized: Tensor, truth: Tensor, block: Block) -> Tensor:
        hit, mass = _probability_sums(resized, truth)
        return (hit * grad[0] + mass * grad[1]).sum()

    return _with_gradient_of(value.detach(), logits, target, size, linear)


def dice_of_sums(sums: Tensor, number: Tensor) -> Tensor:
    """The Dice loss of (2, K) I and P, and (K,) Y; see `upsample_dice`."""
    present = number > 0
    ratios = 2 * sums[0] / (sums[1] + number).clamp(min=1e-12)
    return (1 - ratios)[present].sum() / present.sum().clamp(min=1)


def upsample_lovasz(logits: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    """Lovász-softmax over the classes present in the batch (Berman et al. 2018, eq. 8, 11).

    Stores one probability per pixel and present class. Arguments as `upsample_cross_entropy`.
    """
    x = classes_last(logits)
    present = class_counts(target, logits.shape[1]).nonzero()[:, 0]
    probability = x.new_empty(len(present), *target.shape)
    with torch.no_grad():
        for block in row_blocks(x, target, size):
            shares = block.resized.softmax(dim=-1)[..., present]
            probability[:, :, block.rows, block.columns] = shares.movedim(-1, 0)
    counted = target != IGNORE
    value, grad = x.new_zeros(()), torch.zeros_like(probability)
    for i, k in enumerate(present):
        own = target[counted] == k
        errors, steps = lovasz_steps(probability[i][counted], own)
        value += (errors * steps).sum() / len(present)
        grad[i][counted] = torch.where(own, -steps, steps) / len(present)

    def linear(resized: Tensor, truth: Tensor, block: Block) -> Tensor:
        probabilities = resized.softmax(dim=-1)[..., present].movedim(-1, 0)
        return (probabilities * grad[:, :, block.rows, block.columns]).sum()

    return _with_gradient_of(value, logits, target, size, linear)


def lovasz_steps(probability: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of one class, and what each adds to the Jaccard loss; their product is the class's.

    Args:
        probability: (N,) of the class, at all counted pixels.
        own: (N,) which of these pixels are of the class.
    """
    errors = torch.where(own, 1 - probability, probability)
    order = errors.argsort(descending=True)
    steps = torch.empty_like(errors)
    steps[order] = _jaccard_steps(own[order]).to(steps.dtype)
    return errors, steps


def _jaccard_steps(own: Tensor) -> Tensor:
    """Increase of the Jaccard loss as the sorted pixels become errors one by one."""
    total = own.sum()
    hits = total - own.cumsum(0)
    union = total + (~own).cumsum(0)
    jaccard = 1 - hits.double() / union
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))


def _probability_sums(resized: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) sums of the probabilities over a class's own pixels, and over all valid pixels."""
    counted = truth != IGNORE
    probabilities = resized.softmax(dim=-1) * counted[..., None]
    own = F.one_hot(truth.where(counted, 0), resized.shape[-1])
    return (probabilities * own).sum(dim=(0, 1, 2)), probabilities.sum(dim=(0, 1, 2))


def class_counts(target: Tensor, num_classes: int) -> Tensor:
    """(K,) number of pixels of each class; ignored ones are of none."""
    return torch.bincount(target[target != IGNORE].long(), minlength=num_classes)


def _with_gradient_of(
    value: Tensor, logits: Tensor, target: Tensor, size: tuple[int, int], linear: BlockLoss
) -> Tensor:
    """`value`, with the gradient of `linear`, a function linear in the probabilities."""
    grad = upsample_sum(logits, target, size, with_gradient(linear))
    return value + (grad - grad.detach())
