"""Distance between two models' predictions, without full-size logits.

Shapes: B batch, K classes, h x w logits of the student, h' x w' of the teacher, H x W images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from setr.kernels.row_blocks import Block, classes_last, row_blocks, upsample_sum
from setr.labels import IGNORE


def upsample_divergence(
    logits: Tensor,
    teacher: Tensor,
    target: Tensor,
    size: tuple[int, int],
    teacher_size: tuple[int, int],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Sum over valid pixels of T^2 KL(teacher || student), both logits divided by temperature T.

    As in Hinton et al. 2015 (arXiv 1503.02531, section 2), per pixel.

    Args:
        logits: (B, K, h, w) of the student, any float dtype; computed in fp32 (fp64 stays fp64).
        teacher: (B, K, h', w') logits of the teacher.
        target: (B, H, W); pixels of `IGNORE` are not counted.
        size: (H', W') the student's logits are resized to, at least (H, W), and cropped to (H, W).
        teacher_size: the same for the teacher's.
        temperature: T, positive.

    Returns:
        A scalar, 0 or more; differentiable with respect to `logits` only.
    """
    exact = logits.dtype is torch.float64
    known = classes_last(teacher.double() if exact else teacher.float())
    # in the same blocks as the student's, which depend on B, K, H and W
    teachers = row_blocks(known, target, teacher_size)

    def divergence(resized: Tensor, truth: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        wanted = (next(teachers).resized / temperature).log_softmax(-1)
        found = (resized / temperature).log_softmax(-1)
        shares, counted = wanted.exp(), (truth != IGNORE)[..., None]
        value = (shares * (wanted - found) * counted).sum()
        return temperature**2 * value, temperature * (found.exp() - shares) * counted

    return upsample_sum(logits, target, size, divergence)
