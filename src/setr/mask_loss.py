"""The loss of mask classifiers (EoMT): queries are matched to the classes of an image.

As in Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527, section 3.1) and EoMT's code: every
class of an image is a target with one mask. Each target is matched to the query that fits it best
overall (Hungarian matching); the query learns the target's class and mask, all others "no object".
Masks are compared at random points, in the loss mostly at uncertain ones.

Shapes: B batch, K classes, Q queries, S stages, T targets, P points, H x W target.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from setr._extras import import_extra
from setr.kernels.region_losses import counted_target
from setr.labels import IGNORE
from setr.layers.mask_classifier import MaskOutput
from setr.layers.products import no_autocast

POINTS = 112 * 112
"""Points per mask, but no more than its logits: a 512 px image has 128 x 128 of them."""
OVERSAMPLING = 3
"""Random points per point in the loss, of which the most uncertain are kept."""
UNCERTAIN_SHARE = 0.75
"""Share of the points that are chosen by uncertainty; the others are random."""
NO_OBJECT = 0.1
"""Weight of "no object" among the classes."""
NOT_COUNTED = -100
"""Class of the queries of an image that is ignored everywhere; nothing is known about them."""
CLASS_COST, MASK_COST, DICE_COST = 2.0, 5.0, 5.0
"""Weights of the three terms, both in the matching and in the loss."""


class _Targets(NamedTuple):
    """The targets of a batch, image by image, classes ascending.

    Attributes:
        image: (T,) index of the image.
        label: (T,) class.
        counts: number of targets of each image.
    """

    image: Tensor
    label: Tensor
    counts: list[int]


def mask_weight(target: Tensor, num_classes: int, weight: Tensor | None = None) -> Tensor:
    """The divisors of a step's loss: (3,) sum of the targets' class weights, targets, images.

    A target is a class of one image; images that are ignored everywhere do not count, nor classes
    of weight 0. Summed over micro-batches and processes they make the loss equal to that of one
    large batch.
    """
    present = _present(counted_target(target, weight), num_classes).float()
    weighted = present if weight is None else present * weight
    return torch.stack([weighted.sum(), present.sum(), present.amax(1).sum()])


def mask_classification_loss(
    output: MaskOutput,
    target: Tensor,
    *,
    normalizer: Tensor | None = None,
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss of all stages, each with weight 1; in fp32, also under autocast.

    Args:
        output: from `model(images, with_aux=True)`.
        target: (B, H, W) training ids; pixels of `IGNORE` belong to no mask, and points on them do
            not count, nor do images without other pixels.
        normalizer: `mask_weight` over the whole step; of this batch by default.
        weight: (K,) class weights of the classification; all 1 by default. Pixels of a class of
            weight 0 do not count, as if ignored.

    Returns:
        `loss` (for one backward pass), and detached `main` of the last stage and `aux_1`, `aux_2`,
        … of the others.

    Raises:
        SetrError: SciPy is not installed.
    """
    num_classes = output.stages[-1].classes.shape[-1] - 1
    if normalizer is None:
        normalizer = mask_weight(target, num_classes, weight)
    target = counted_target(target, weight)
    targets = _targets(target, num_classes)
    padding = output.size[1] - target.shape[2], output.size[0] - target.shape[1]
    covered = F.pad(target, (0, padding[0], 0, padding[1]), value=IGNORE)
    labels = (covered[targets.image] == targets.label[:, None, None]).float()[:, None]
    valid = (covered != IGNORE).float()[:, None]
    losses = []
    with no_autocast(target.device):
        for masks, classes in output.stages:
            masks, classes = masks.float(), classes.float()
            with torch.no_grad():
                chosen = _match(masks, classes, labels, valid, targets)
            terms = _class_loss(classes, targets, chosen, normalizer, weight)
            losses.append(terms + _mask_loss(masks, labels, valid, targets, chosen, normalizer))
    parts = {"main": losses[-1].detach()}
    parts.update({f"aux_{i}": loss.detach() for i, loss in enumerate(losses[:-1], 1)})
    return {"loss": torch.stack(losses).sum(), **parts}


def _present(target: Tensor, num_classes: int) -> Tensor:
    """(B, K) bool: which classes each image has."""
    ids = target.flatten(1).long().clamp(max=num_classes)
    counts = ids.new_zeros(len(ids), num_classes + 1).scatter_add_(1, ids, torch.ones_like(ids))
    return counts[:, :num_classes] > 0


def _targets(target: Tensor, num_classes: int) -> _Targets:
    present = _present(target, num_classes)
    image, label = present.nonzero(as_tuple=True)
    return _Targets(image, label, present.sum(1).tolist())


def _match(
    masks: Tensor, classes: Tensor, labels: Tensor, valid: Tensor, targets: _Targets
) -> Tensor:
    """(T,) the query that each target is matched to; -1 for none, if targets outnumber queries."""
    optimize = import_extra("scipy.optimize", "eomt", "training EoMT")
    if not len(labels):
        return targets.label
    B = len(masks)
    points = torch.rand(B, _num_points(masks), 2, device=masks.device)
    logits = _sampled(masks, points)  # (B, Q, P)
    counted = _sampled(valid, points, "nearest")  # (B, 1, P)
    truth = _sampled(labels, points[targets.image])[:, 0]  # (T, P)
    probabilities = classes.softmax(-1)
    chosen, start = [], 0
    for image, count in enumerate(targets.counts):
        own = slice(start, start + count)
        share = counted[image] / counted[image].sum().clamp(min=1)
        x, t = logits[image], truth[own] * counted[image]
        # cross-entropy of x with t is softplus(x) - x t, as softplus(-x) = softplus(x) - x
        cost = MASK_COST * ((F.softplus(x) * share).sum(1)[:, None] - (x * share) @ t.T)
        inside = x.sigmoid() * counted[image]
        overlap = (2 * inside @ t.T + 1) / (inside.sum(1)[:, None] + t.sum(1) + 1)
        cost += DICE_COST * (1 - overlap) - CLASS_COST * probabilities[image][:, targets.label[own]]
        rows, columns = optimize.linear_sum_assignment(cost.nan_to_num(0).cpu().numpy())
        found = torch.full((count,), -1)
        found[torch.from_numpy(columns)] = torch.from_numpy(rows)
        chosen.append(found)
        start += count
    return torch.cat(chosen).to(masks.device)


def _class_loss(
    classes: Tensor, targets: _Targets, chosen: Tensor, normalizer: Tensor, weight: Tensor | None
) -> Tensor:
    """Weighted cross-entropy of every query's class, in images with targets."""
    B, Q, K = classes.shape[0], classes.shape[1], classes.shape[2] - 1
    truth = torch.full((B, Q), NOT_COUNTED, device=classes.device)
    truth[targets.image] = K
    matched = chosen >= 0
    truth[targets.image[matched], chosen[matched]] = targets.label[matched]
    weights = classes.new_ones(K + 1)
    if weight is not None:
        weights[:K] = weight
    weights[K] = NO_OBJECT
    total = F.cross_entropy(
        classes.flatten(0, 1), truth.flatten(), weights, ignore_index=NOT_COUNTED, reduction="sum"
    )
    weighted, count, images = normalizer.to(classes.dtype)
    return CLASS_COST * total / (weighted + NO_OBJECT * (images * Q - count)).clamp(min=1e-12)


def _mask_loss(
    masks: Tensor,
    labels: Tensor,
    valid: Tensor,
    targets: _Targets,
    chosen: Tensor,
    normalizer: Tensor,
) -> Tensor:
    """Binary cross-entropy and Dice loss of the matched masks."""
    matched = chosen >= 0
    if not matched.any():
        return masks.sum() * 0.0
    image, labels = targets.image[matched], labels[matched]
    logits = masks[image, chosen[matched]][:, None]
    with torch.no_grad():
        points = _uncertain_points(logits)
        truth = _sampled(labels, points)[:, 0]
        counted = _sampled(valid[image], points, "nearest")[:, 0]
    x = _sampled(logits, points)[:, 0]
    entropy = F.binary_cross_entropy_with_logits(x, truth, counted, reduction="none").sum(1)
    entropy = entropy / counted.sum(1).clamp(min=1)
    inside, truth = x.sigmoid() * counted, truth * counted
    dice = 1 - (2 * (inside * truth).sum(1) + 1) / (inside.sum(1) + truth.sum(1) + 1)
    count = normalizer[1].to(masks.dtype).clamp(min=1)
    return (MASK_COST * entropy.sum() + DICE_COST * dice.sum()) / count


def _uncertain_points(logits: Tensor) -> Tensor:
    """(R, P, 2) points of R masks (R, 1, h, w): most where the logit is near 0, the rest random."""
    count = _num_points(logits)
    points = torch.rand(len(logits), count * OVERSAMPLING, 2, device=logits.device)
    kept = int(UNCERTAIN_SHARE * count)
    nearest = _sampled(logits, points)[:, 0].abs().topk(kept, dim=1, largest=False).indices
    uncertain = points.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([uncertain, torch.rand_like(points[:, : count - kept])], dim=1)


def _num_points(masks: Tensor) -> int:
    return min(POINTS, masks.shape[-2] * masks.shape[-1])


def _sampled(maps: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Values at points: (R, C, h, w), (R, P, 2) x and y from 0 to 1 -> (R, C, P)."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid, mode=mode, align_corners=False)[..., 0]
