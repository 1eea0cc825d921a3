"""Losses that couple pixels: OHEM, Dice and Lovász, on logits that are never held at full size.

OHEM first finds the hard pixels; the cross-entropy of those follows. Dice and Lovász take two
passes over the rows: one finds the value and its derivative by the probabilities, the other carries
that derivative back to the decoder's scale.

Shapes: B batch, K classes, h x w logits, H x W target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.labels import IGNORE
from setr.row_blocks import PixelLoss, exact, row_blocks, upsample_sum


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

    Hard are the pixels whose true class has a probability below `threshold`, and in any case the
    `min_share` of the counted pixels with the lowest.

    Args:
        logits: (B, K, h, w).
        target: (B, H, W) training ids.
        size: as in `upsample_cross_entropy`.
        threshold: probability of the true class.
        min_share: 0 to 1.
    """
    truth = target.long()
    likely = torch.empty(target.shape, dtype=exact(logits).dtype, device=logits.device)
    for block in row_blocks(exact(logits), target, size):
        rows = slice(block.top, block.top + block.wide.shape[2])
        loss = F.cross_entropy(block.wide, truth[:, rows], ignore_index=IGNORE, reduction="none")
        likely[:, rows] = torch.exp(-loss)
    counted = likely[target != IGNORE]
    keep = int(len(counted) * min_share)
    limit = counted.kthvalue(keep).values if keep else counted.new_zeros(())
    return torch.where((likely < threshold) | (likely <= limit), target, IGNORE)


def upsample_dice(logits: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over the classes present of 1 - 2 I / (P + Y) (Milletari et al. 2016, unsquared).

    I is the probability mass of a class on its own pixels, P on all counted pixels, Y their number.
    Arguments as `upsample_cross_entropy`.
    """
    K = logits.shape[1]
    sums = torch.zeros(2, K, dtype=exact(logits).dtype, device=logits.device)  # I, P
    number = _class_counts(target, K).to(sums)
    with torch.no_grad():
        for block in row_blocks(exact(logits), target, size):
            hit, mass = _masses(block.wide, target[:, block.top :][:, : block.wide.shape[2]])
            sums += torch.stack((hit, mass))
    sums.requires_grad_()
    present = number > 0
    with torch.enable_grad():
        ratios = 2 * sums[0] / (sums[1] + number).clamp(min=1e-12)
        value = (1 - ratios)[present].sum() / present.sum().clamp(min=1)
        slope = torch.autograd.grad(value, sums)[0]

    def linear(wide: Tensor, truth: Tensor, top: int) -> Tensor:
        hit, mass = _masses(wide, truth)
        return (hit * slope[0] + mass * slope[1]).sum()

    return _carried_back(value.detach(), logits, target, size, linear)


def upsample_lovasz(logits: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    """Lovász-softmax over the classes present in the batch (Berman et al. 2018, eq. 8, 11).

    Holds one probability per pixel and present class; arguments as `upsample_cross_entropy`.
    """
    x = exact(logits)
    present = _class_counts(target, logits.shape[1]).nonzero()[:, 0]
    likely = x.new_empty(len(present), *target.shape)
    with torch.no_grad():
        for block in row_blocks(x, target, size):
            rows = slice(block.top, block.top + block.wide.shape[2])
            likely[:, :, rows] = block.wide.softmax(dim=1)[:, present].transpose(0, 1)
    counted = target != IGNORE
    value, slope = x.new_zeros(()), torch.zeros_like(likely)
    for i, k in enumerate(present):
        own = target[counted] == k
        errors = torch.where(own, 1 - likely[i][counted], likely[i][counted])
        order = errors.argsort(descending=True)
        steps = torch.empty_like(errors)
        steps[order] = _jaccard_steps(own[order])
        value += (errors * steps).sum() / len(present)
        slope[i][counted] = torch.where(own, -steps, steps) / len(present)

    def linear(wide: Tensor, truth: Tensor, top: int) -> Tensor:
        probabilities = wide.softmax(dim=1)[:, present].transpose(0, 1)
        return (probabilities * slope[:, :, top : top + wide.shape[2]]).sum()

    return _carried_back(value, logits, target, size, linear)


def _jaccard_steps(own: Tensor) -> Tensor:
    """Growth of the Jaccard loss as sorted pixels, own class or not, become errors one by one."""
    total = own.sum()
    hits = total - own.cumsum(0)
    union = total + (~own).cumsum(0)
    jaccard = 1 - hits.double() / union
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))


def _masses(wide: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) probability on a class's own pixels, and on all counted pixels."""
    counted = target != IGNORE
    probabilities = wide.softmax(dim=1) * counted[:, None]
    own = F.one_hot(target.where(counted, 0).long(), wide.shape[1]).permute(0, 3, 1, 2)
    return (probabilities * own).sum(dim=(0, 2, 3)), probabilities.sum(dim=(0, 2, 3))


def _class_counts(target: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(target[target != IGNORE].long(), minlength=num_classes)


def _carried_back(
    value: Tensor, logits: Tensor, target: Tensor, size: tuple[int, int], linear: PixelLoss
) -> Tensor:
    """`value`, with the gradient of a function that is linear in the probabilities."""
    slope = upsample_sum(logits, target, size, linear)
    return value + (slope - slope.detach())
