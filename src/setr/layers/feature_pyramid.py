"""UPerNet's neck on BEiT and MAE: transposed convolutions and pooling.

As in mmsegmentation 1.2.2 (mmseg/models/necks/featurepyramid.py, `Feature2Pyramid`) and, before it,
in BEiT's own code for ADE20K (microsoft/unilm, beit/semantic_segmentation): the first of four maps
is enlarged 4 times, the second twice, the third stays, the last is pooled to half its size.

Shapes: B batch, C encoder width, D channels of the head, h x w patch grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from setr.errors import UsageError
from setr.layers.cpu_blocks import is_traced
from setr.layers.joined_convolution import OpenConvBNReLU

DOUBLINGS = (2, 1, 0)
"""How often the first three maps are doubled."""


class FeaturePyramidNeck(nn.Module):
    """The neck, and the head's lateral convolutions on its maps, for `UPerHead`.

    Auxiliary heads read the encoder's own maps, as the third map of the neck is one.

    Args:
        widths: number of channels C of each tapped map, shallow to deep; all the same.
        channels: number of channels D of the head.

    Raises:
        SetrError: other than four maps.
    """

    pyramid = True
    aux_reads_encoder = True

    def __init__(self, widths: list[int], *, channels: int = 512) -> None:
        super().__init__()
        if len(widths) != len(DOUBLINGS) + 1:
            raise UsageError(
                f"upernet: {len(widths)} taps, but its neck makes 4 levels; give 4 blocks as taps, "
                "or the neck none"
            )
        self.channels = channels
        self.widths = [channels] * len(DOUBLINGS) + widths[-1:]
        self.levels = nn.ModuleList(
            DoubledLevel(width, channels, times)
            for width, times in zip(widths[:-1], DOUBLINGS, strict=True)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Four maps (B, C, h, w) -> three (B, D, ...) of 4, 2 and 1 times their size, and the last.

        The last map (B, C, h/2, w/2) has the largest values of 2x2 cells; sides are rounded down,
        but to one cell at least.
        """
        *earlier, last = features
        maps = [level(x) for level, x in zip(self.levels, earlier, strict=True)]
        if not is_traced() and min(last.shape[-2:]) < 2:
            missing = [max(0, 2 - side) for side in last.shape[-2:]]
            last = F.pad(last, (0, missing[1], 0, missing[0]), mode="replicate")
        return [*maps, F.max_pool2d(last, 2)]


class DoubledLevel(nn.Module):
    """A map doubled by transposed convolutions, and the head's lateral convolution of it.

    Nothing non-linear is between the last transposed convolution and the lateral one, so they are
    computed as one, which halves the multiplications if D = C.

    Args:
        width: number of channels C.
        channels: number of channels D of the head.
        times: how often it is doubled, 0 to 2.
    """

    def __init__(self, width: int, channels: int, times: int) -> None:
        super().__init__()
        self.lateral = OpenConvBNReLU(width, channels, 1, bias=False)
        self.first: nn.Module = nn.Identity()
        if times == 2:
            self.first = nn.Sequential(
                nn.ConvTranspose2d(width, width, 2, stride=2), nn.BatchNorm2d(width), nn.GELU()
            )
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2) if times else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, s*h, s*w) with s = 1, 2 or 4."""
        if self.up is None:
            return self.lateral(x)
        weight, bias = self.lateral.kernel_behind(self.up)
        return self.lateral.finish(F.conv_transpose2d(self.first(x), weight, bias, stride=2))

    def merge(self) -> None:
        """Multiply the two convolutions for good, in a copy for export whose norm is folded."""
        if self.up is not None:
            self.lateral.merge_into(self.up)
