"""Distance between two models' predictions, without full-size logits.

Shapes: B batch, K classes, h x w logits of the student, h' x w' of the teacher, H x W images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from setr.kernels.row_blocks import Block, classes_last, row_blocks, upsample_sum


def upsample_divergence(
    logits: Tensor,
    teacher: Tensor,
    target: Tensor,
    size: tuple[int, int],
    teacher_size: tuple[int, int],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Sum over pixels of T^2 KL(teacher || student), with both logits divided by the temperature T.

    As in Hinton et al. 2015 (arXiv 1503.02531, section 2), per pixel. Ignored pixels are counted,
    too, since the teacher has a prediction for them.

    Args:
        logits: (B, K, h, w) of the student, any float dtype; computed in fp32 (fp64 stays fp64).
        teacher: (B, K, h', w') logits of the teacher.
        target: (B, H, W); only its shape is used.
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
        shares = wanted.exp()
        value = (shares * (wanted - found)).sum()
        return temperature**2 * value, temperature * (found.exp() - shares)

    return upsample_sum(logits, target, size, divergence)
