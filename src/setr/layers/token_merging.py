"""Token merging: similar neighbours become one token behind the first block, and four in the end.

Most patches of an image look like their neighbours, and a transformer computes each of them anew
in every block. Here the grid of patches is divided into groups of 2x2, and a share of the groups,
those whose tokens are most alike, go through the other blocks as one token each, their mean.
Behind a tapped block every patch gets the token that stands for it, so decoders see whole maps.

After the local half of ALGM (Norouzi et al., Adaptive Local-then-Global Token Merging for Efficient
Semantic Segmentation with Plain Vision Transformers, CVPR 2024), with a fixed share in place of a
threshold: then all images of a size have equally many tokens, which batches, compiled graphs and
exported files need. Groups are chosen for each image alone, so results do not depend on the batch.

Shapes: B batch, h x w patch grid, P prefix tokens, G = ceil(h/2) ceil(w/2) groups, k merged ones,
M = hw - 3k patch tokens that are left, C width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from setr.errors import UsageError

THOUSANDTHS = 1000
"""A share is rounded to these, so that traced graphs count groups in whole numbers."""


class Merging(NamedTuple):
    """Which tokens of a batch are merged.

    Attributes:
        chosen: (B, M) of each token that is left its place among the means of all groups, followed
            by all patches: merged groups, then the patches that stay alone, ascending.
        places: (B, hw) the place of each patch among the M tokens.
        grid: the patch grid (h, w).
    """

    chosen: Tensor
    places: Tensor
    grid: tuple[int, int]

    def merge(self, patches: Tensor) -> Tensor:
        """(B, hw, D) values of patches -> (B, M, D): means of merged groups, then the others."""
        means = _grouped(patches, self.grid).mean(dim=2)
        return _rows(torch.cat([means, patches], dim=1), self.chosen)

    def restore(self, tokens: Tensor) -> Tensor:
        """(B, M, D) -> (B, hw, D): each patch gets the token that stands for it."""
        return _rows(tokens, self.places)

    def turned(self, angles: list[Tensor | None]) -> list[Tensor | None]:
        """Rotary angles of some blocks for patches -> for tokens; a group's are of its middle.

        Args:
            angles: of each block sines, then cosines, (hw, 2D) or of each head (heads, hw, 2D).

        Returns:
            (B, 1 or heads, M, 2D) each; the same ones where blocks had the same.
        """
        own = {id(a): None if a is None else self._turned(a) for a in angles}
        return [own[id(a)] for a in angles]

    def _turned(self, angles: Tensor) -> Tensor:
        by_head = angles if angles.ndim == 3 else angles[None]
        merged = self.merge(by_head.transpose(0, 1).flatten(1).expand(self.places.shape[0], -1, -1))
        sines, cosines = merged.unflatten(2, (len(by_head), -1)).transpose(1, 2).chunk(2, dim=-1)
        length = (sines.square() + cosines.square()).sqrt()
        return torch.cat([sines / length, cosines / length], dim=-1)


def require_mergeable(vit: Any, name: str, share: float) -> None:
    """Raise `SetrError` unless this share of groups can be merged in a ViT's blocks."""
    if not 0 <= share <= 1:
        raise UsageError(f"merge_tokens {share:g}: give the share of groups to merge, 0 to 1")
    if share and hasattr(vit, "block_arguments"):
        raise UsageError(
            f"merge_tokens {share:g}: the attention of {name} needs the whole grid of patches; "
            "leave it out"
        )


def most_alike(patches: Tensor, grid: tuple[int, int], share: float) -> Merging:
    """Choose the groups to merge.

    A group's similarity is the length of the mean of its tokens, each scaled to length 1: the
    square of it is the mean cosine over all pairs of them.

    Of odd grids the last groups are incomplete and come last. No tensor here is ever empty, however
    few patches there are: OpenVINO refuses empty ones, and ONNX Runtime to reshape them.

    Args:
        patches: (B, hw, C) tokens, without prefix tokens.
        grid: (h, w); of odd sides the last row or column stays alone.
        share: of the whole groups that are merged, rounded down.
    """
    (h, w), (B, N) = grid, patches.shape[:2]
    with torch.no_grad():
        unit = F.normalize(patches.float(), dim=-1)
        alike = _grouped(unit, grid).mean(dim=2).square().sum(dim=-1)
        rows, columns = (
            torch.arange((side + 1) // 2, device=patches.device) < side // 2 for side in grid
        )
        alike = alike.where((rows[:, None] & columns).flatten(), -1)
        k = (h // 2) * (w // 2) * round(share * THOUSANDTHS) // THOUSANDTHS
        G = alike.shape[1]
        best = alike.topk(G, dim=1).indices
        order = torch.arange(G, device=patches.device).expand(B, -1)
        # the number of a group's merged token, or -1; then the same for each patch
        numbers = torch.zeros_like(best).scatter(1, best, order)
        numbers = numbers.where(numbers < k, -1)
        merged = _spread(numbers, grid)
        alone = merged < 0
        # the places of what is left are those with the largest values; sorting has no ONNX form
        first = torch.arange(N, 0, -1, device=patches.device) * alone
        groups = (N + G - numbers) * (numbers >= 0)
        chosen = torch.cat([groups, first], dim=1).topk(N - 3 * k, dim=1).indices
        places = torch.where(alone, k - 1 + alone.long().cumsum(dim=1), merged)
    return Merging(chosen, places, grid)


def _grouped(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, hw, D) -> (B, G, 4, D); groups of the last row and column of odd grids have zeros."""
    h, w = grid
    maps = F.pad(patches.unflatten(1, (h, w)), (0, 0, 0, w % 2, 0, h % 2))
    maps = maps.unflatten(1, ((h + 1) // 2, 2)).unflatten(3, ((w + 1) // 2, 2))
    return maps.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _spread(numbers: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, G) numbers of groups -> (B, hw): of each patch its group's."""
    h, w = grid
    maps = numbers.unflatten(1, ((h + 1) // 2, (w + 1) // 2))
    maps = maps.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return maps[:, :h, :w].flatten(1)


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    """(B, n, D), (B, m) -> (B, m, D): the chosen rows of each image."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))
