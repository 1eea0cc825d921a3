"""The loss of a model's main head over a split, from the scores that an evaluation computes.

It is the training loss without auxiliary heads, of one step that has every image of the split as a
micro-batch: the same classes of pixels count, with the same weights. Scores come in blocks of rows
and are not kept; OHEM keeps a number for each pixel of an image until its last row, Lovász one for
each pixel and present class, as they do in training.

Shapes: B images of equal size, K classes, H x W truth, r rows of a block.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.arguments.choices import LossKind
from setr.distributed import add_up
from setr.kernels.region_losses import (
    class_counts,
    counted_target,
    dice_of_sums,
    hard_pixels,
    lovasz_steps,
)
from setr.labels import IGNORE
from setr.losses import GAMMA

TINY = 1e-12
"""Smallest sum of weights to divide by."""


class SplitLoss:
    """Sums a loss over the images of a split.

    Args:
        kind: of the training.
        weight: (K,) class weights; all 1 by default.
        norm: divide by the weights of the `valid` pixels, or by the number of `all` pixels.
        name: of the figure; another one where it is not the loss of the training.
        device: of the scores.
    """

    def __init__(
        self,
        kind: LossKind = "cross_entropy",
        weight: Tensor | None = None,
        *,
        norm: Literal["valid", "all"] = "valid",
        name: str = "loss",
        device: torch.device | str = "cpu",
    ) -> None:
        self.kind, self.weight, self.norm, self.name = kind, weight, norm, name
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of losses, the divisor

    def images(self, truths: Tensor) -> ImageLoss:
        """The loss of some images, which `add` counts once all their rows were seen.

        Args:
            truths: (B, H, W) training ids on the device of the scores.
        """
        return ImageLoss(self, truths)

    def add(self, images: ImageLoss) -> None:
        """Count images of which all rows were seen."""
        self.sums[0] += images.total()
        self.sums[1] += images.pixels.sum() if self.norm == "valid" else images.truths.numel()

    def reduce(self) -> None:
        """Sum over all processes, if there are several."""
        add_up(self.sums)

    def mean(self) -> float | None:
        """The loss of all images; None if no pixel counts."""
        total, pixels = self.sums.tolist()
        return total / pixels if pixels else None


class ImageLoss:
    """The loss of images of equal size, whose scores come in blocks from top to bottom.

    Args:
        split: kind and weights.
        truths: (B, H, W) training ids.
    """

    def __init__(self, split: SplitLoss, truths: Tensor) -> None:
        self.kind, self.weight, self.truths = split.kind, split.weight, truths
        self.sum = torch.zeros((), dtype=torch.float64, device=truths.device)
        self.pixels = self.sum.new_zeros(len(truths))  # sum of the weights in each image
        self.entropies: list[Tensor] = []  # (B, r, W) of each block, for OHEM
        self.masses: list[Tensor] = []  # (B, 2, K) of each block, for Dice
        self.shares: list[Tensor] = []  # (B, P, r, W) of each block and P present classes

    def __call__(self, first: int, scores: Tensor) -> None:
        """Count rows from `first` on, of which (B, K, r, W) are the scores before the softmax."""
        truth = self.truths[:, first : first + scores.shape[2]]
        entropy = F.cross_entropy(scores, truth.long(), ignore_index=IGNORE, reduction="none")
        weights = _pixel_weights(truth, self.weight)
        self.pixels += weights.sum((1, 2), dtype=torch.float64)
        if self.kind == "ohem":
            self.entropies.append(entropy)
            return
        if self.kind == "focal":
            entropy = (1 - torch.exp(-entropy)).pow(GAMMA) * entropy
        self.sum += (entropy * weights).sum(dtype=torch.float64)
        if self.kind == "dice":
            self.masses.append(self._masses(scores, truth))
        elif self.kind == "lovasz":
            self.shares.append(scores.softmax(1)[:, self.present])

    def total(self) -> Tensor:
        """The sum of the losses; those that are means are multiplied by the image's weights."""
        if self.kind == "ohem":
            entropy = torch.cat(self.entropies, dim=1)
            for i, target in enumerate(self.counted):
                hard = hard_pixels(torch.exp(-entropy[i]), target)
                weights = _pixel_weights(hard, self.weight)
                mean = (entropy[i] * weights).sum() / weights.sum().clamp(min=TINY)
                self.sum += self.pixels[i] * mean
        elif self.kind == "dice":
            masses = torch.stack(self.masses).sum(0)  # (B, 2, K)
            for i, target in enumerate(self.counted):
                own = class_counts(target, masses.shape[-1]).to(masses)
                self.sum += self.pixels[i] * dice_of_sums(masses[i], own)
        elif self.kind == "lovasz":
            shares = torch.cat(self.shares, dim=2)
            for i, target in enumerate(self.counted):
                self.sum += self.pixels[i] * _lovasz(shares[i], target, self.present)
        return self.sum

    def _masses(self, scores: Tensor, truth: Tensor) -> Tensor:
        """(B, 2, K) sums of the probabilities over a class's own pixels, and over all counted."""
        B, K = scores.shape[:2]
        ids = counted_target(truth, self.weight)
        counted = (ids != IGNORE)[:, None]
        shares = scores.softmax(1).mul_(counted)
        ids = ids[:, None].where(counted, 0).long()
        own = shares.new_zeros(B, K).scatter_add_(
            1, ids.flatten(1), shares.gather(1, ids).flatten(1)
        )
        return torch.stack([own, shares.sum((2, 3))], dim=1)

    @functools.cached_property
    def counted(self) -> Tensor:
        """The truths with classes of weight 0 ignored, as OHEM, Dice and Lovász read them."""
        return counted_target(self.truths, self.weight)

    @functools.cached_property
    def present(self) -> Tensor:
        """(P,) the classes of any of the images, ascending."""
        return class_counts(self.counted, IGNORE).nonzero()[:, 0]


def _pixel_weights(target: Tensor, weight: Tensor | None) -> Tensor:
    """The class weight of every pixel of a target, float32; 0 where it is ignored."""
    valid = target != IGNORE
    if weight is None:
        return valid.float()
    return weight.take(target.where(valid, 0).long()).where(valid, 0.0)


def _lovasz(shares: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """The mean loss over an image's classes, from (P, H, W) probabilities of `present` classes."""
    counted, own = target != IGNORE, class_counts(target, IGNORE)
    value = shares.new_zeros(())
    for share, k in zip(shares, present.tolist(), strict=True):
        if own[k]:
            errors, steps = lovasz_steps(share[counted], target[counted] == k)
            value += (errors * steps).sum()
    return value / (own > 0).sum().clamp(min=1)
