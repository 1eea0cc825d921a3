"""The argmax over classes at full resolution, mostly without resizing the logits.

Bilinear weights are the same for all classes, non-negative, and sum to one. So if one class is the
best at all four logits around a pixel, it is the best at the pixel; only pixels between logits that
disagree (a few per cent) have to be interpolated and compared.

Shapes: B batch, K classes, h x w logits, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from setr.errors import SetrError
from setr.kernels.row_blocks import source_rows
from setr.labels import IGNORE

BLOCK_BYTES = 4 << 20
"""Bytes of float32 scores processed at a time on CPUs; a block that fits the cache is three times
as fast."""
UNSURE = 0.2
"""Share of pixels between disagreeing logits above which resizing all logits is as fast."""


def best_class(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Max and argmax over classes, ties to the first: (B, K, H, W) -> (B, H, W), uint8 (B, H, W).

    On CPUs `max(dim=1)` has strided memory access and 64-bit indices. Two `amax` are vectorised: of
    the scores, and of `K - k` over the classes k with the largest score.

    Raises:
        SetrError: more classes than ids, or a largest score that is NaN or infinite.
    """
    if scores.shape[1] > IGNORE:
        raise SetrError(f"{scores.shape[1]} classes: the ids of a mask are 8-bit, {IGNORE} at most")
    if scores.device.type == "cpu":
        best, K = scores.amax(dim=1), scores.shape[1]
        ranks = torch.arange(K, 0, -1, dtype=torch.uint8)[:, None, None]
        equal = (scores == best[:, None]).view(torch.uint8)
        ids = K - equal.mul_(ranks).amax(dim=1)
    else:
        best, index = scores.max(dim=1)
        ids = index.to(torch.uint8)
    largest = best.amax() if best.numel() else best.new_zeros(())  # NaN if any is
    if not largest.isfinite():
        raise SetrError(
            f"the model's scores are not numbers ({'NaN' if largest.isnan() else largest.item()}); "
            "its weights are broken, or the precision is too low: try fp32"
        )
    return best, ids


def best_upsampled(logits: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor | None:
    """Argmax of bilinearly resized (align_corners=False) and cropped logits, on a CPU.

    Args:
        logits: (B, K, h, w).
        padded: (height, width) the logits would be resized to.
        size: (H, W) of the crop, from the top left.

    Returns:
        uint8 (B, H, W). None if resizing all logits is as fast: they have about as many pixels, or
        too many of them disagree.

    Raises:
        SetrError: as `best_class`.
    """
    B, K, h, w = logits.shape
    if 2 * h * w > padded[0] * padded[1]:
        return None
    num_rows = max(1, BLOCK_BYTES // (4 * B * K * w))
    coarse = torch.cat([best_class(x.float())[1] for x in logits.split(num_rows, dim=2)], dim=1)
    (top, bottom, down), (left, right, across) = (
        source_rows(0, n, m, N) for n, m, N in zip(size, (h, w), padded, strict=True)
    )
    ids = _agreed(_agreed(coarse, 1), 2).index_select(1, top).index_select(2, left)
    if (ids == IGNORE).sum() > UNSURE * ids.numel():
        return None
    for values, found in zip(logits.flatten(2), ids, strict=True):
        for places in (found == IGNORE).nonzero().split(max(1, BLOCK_BYTES // (16 * K))):
            y, x = places.unbind(1)
            first, second = (
                torch.lerp(
                    values[:, top[y] * w + near[x]].float(),
                    values[:, bottom[y] * w + near[x]].float(),
                    down[y].float(),
                )
                for near in (left, right)
            )
            scores = torch.lerp(first, second, across[x].float())
            found[y, x] = best_class(scores[None, :, None])[1][0, 0]
    return ids


def _agreed(ids: Tensor, dim: int) -> Tensor:
    """Ids that equal the next one along an axis, else IGNORE; the last one stays."""
    following = torch.cat([ids.narrow(dim, 1, ids.shape[dim] - 1), ids.narrow(dim, -1, 1)], dim)
    return torch.where(ids == following, ids, IGNORE)
