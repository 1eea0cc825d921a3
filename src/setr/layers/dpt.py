"""DPT's decoder for segmentation: maps of four scales from one ViT, fused from coarse to fine.

Ranftl et al. 2021 ("Vision Transformers for Dense Prediction", arXiv 2103.13413), section 3. A ViT
has one resolution; `DPTNeck` makes maps of 4, 2, 1 and 1/2 times the patch grid from four of its
blocks ("reassemble") and fuses them like RefineNet. `DPT` classifies the finest of the fused maps.

Shapes: B batch, C channels, h x w patch grid, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from setr.errors import UsageError
from setr.layers.conv_bn_relu import ConvBNReLU
from setr.layers.cpu_blocks import is_traced
from setr.layers.upsampling import require_final_scale, resize_bilinear, upsample

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Scales of the maps in units of the patch grid, shallow to deep; 4, 8, 16, 32 pixels per cell."""
WIDE = 1024
"""Width from which on an encoder's maps have ViT-L's channels in the paper, else ViT-B's."""


def reassembled_channels(width: int) -> tuple[int, ...]:
    """Channels of the maps for an encoder of this width, in the proportions of the paper.

    ViT-B (768): 96, 192, 384, 768; ViT-L (1024): 256, 512, 1024, 1024 (section 4 and its code).
    """
    first = width // 4 if width >= WIDE else width // 8
    return tuple(min(first * factor, width) for factor in (1, 2, 4, 8))


class Reassemble(nn.Module):
    """Patch tokens of one block as a map of another scale (section 3, "Read", "Resample").

    Args:
        in_channels: channels of the encoder's map.
        width: width C of the encoder. If `in_channels` is 2C, the second half is the class token's
            (readout `concat`), and a linear layer with GELU reduces the two to C, which is the
            readout "project" of the paper.
        channels: channels of the map while it is resampled.
        scale: above 1 for a transposed convolution, 1, or below for a convolution with a stride.
        out_channels: channels after the last 3x3 convolution.
        project: whether there is a linear layer with GELU without a class token, too.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        channels: int,
        scale: float,
        out_channels: int,
        *,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.readout: nn.Module | None = None
        if in_channels != width or project:
            self.readout = nn.Sequential(nn.Linear(in_channels, width), nn.GELU())
        self.project = nn.Conv2d(width, channels, 1)
        self.resample = _resampling(channels, scale)
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, s*h, s*w), for s < 1 rounded up."""
        if self.readout is not None:
            x = self.readout(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.conv(self.resample(self.project(x)))


def _resampling(channels: int, scale: float) -> nn.Module:
    if scale == 1:
        return nn.Identity()
    if scale < 1:
        return nn.Conv2d(channels, channels, 3, stride=int(1 / scale), padding=1)
    return nn.ConvTranspose2d(channels, channels, int(scale), stride=int(scale))


class ConvBN(ConvBNReLU):
    """3x3 convolution and batch norm, folded as in `ConvBNReLU`, without the ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, bias=False)
        self[2] = nn.Identity()


class ResidualUnit(nn.Module):
    """Residual unit of two 3x3 convolutions with batch norm, each after a ReLU (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBNReLU(channels, channels, 3, bias=False)
        self.second = ConvBN(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return x + self.second(self.first(F.relu(x)))


class Fusion(nn.Module):
    """Add a finer map to the one fused so far, refine the sum and double its resolution.

    The 1x1 projection comes before the upsampling, which computes the same with a quarter of the
    operations (see `setr.decoders`); in the public implementations it comes after.

    Args:
        channels: channels C of all maps.
        lateral: whether the map is refined before it is added, too.
        align_corners: option of the upsampling.
    """

    def __init__(self, channels: int, *, lateral: bool, align_corners: bool) -> None:
        super().__init__()
        self.lateral = ResidualUnit(channels) if lateral else nn.Identity()
        self.refine = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)
        self.align_corners = align_corners

    def forward(self, finer: Tensor, fused: Tensor | None = None) -> Tensor:
        """Maps (B, C, h, w) -> (B, C, 2h', 2w'), with the size h' x w' of `fused`, if given.

        `finer` is resized to `fused` where their sizes differ: at odd grids, as half of h is
        rounded up.
        """
        x = finer
        if fused is not None:
            size = (fused.shape[-2], fused.shape[-1])
            if is_traced() or x.shape[-2:] != size:  # a traced graph must work at any size
                x = resize_bilinear(x, size)
        x = self.lateral(x)
        if fused is not None:
            x = fused + x
        return upsample(self.project(self.refine(x)), 2, align_corners=self.align_corners)


class DPTNeck(nn.Module):
    """Reassembles up to four maps of one resolution to a pyramid, and fuses it (section 3).

    Args:
        widths: channels of the encoder's maps, shallow to deep.
        width: width C of the encoder; see `Reassemble`.
        channels: channels of the fused maps; 256 in the paper.
        reassembled: channels of each map while it is resampled; by default those of
            `reassembled_channels`.
        align_corners: option of the upsampling between fusions: True in all public
            implementations.
        scales: scales of the maps in units of the patch grid, each half of the one before it.
        project: whether maps go through a linear layer with GELU where there is no class token,
            too, as in segmentation_models.pytorch.
        deepest_lateral: whether the deepest map is refined twice, as there, too.

    Raises:
        SetrError: more maps than scales, or another number of `reassembled`.
    """

    def __init__(
        self,
        widths: list[int],
        *,
        width: int,
        channels: int = 256,
        reassembled: tuple[int, ...] | None = None,
        align_corners: bool = True,
        scales: tuple[float, ...] = SCALES,
        project: bool = False,
        deepest_lateral: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) > len(scales):
            raise UsageError(f"taps: {len(widths)} blocks; DPT reads {len(scales)} or fewer")
        reassembled = reassembled or reassembled_channels(width)[: len(widths)]
        if len(reassembled) != len(widths):
            raise UsageError(
                f"reassembled {tuple(reassembled)}: give one number for each of {len(widths)} taps"
            )
        self.channels = channels
        self.reassemble = nn.ModuleList(
            Reassemble(given, width, inner, scale, channels, project=project)
            for given, inner, scale in zip(widths, reassembled, scales, strict=False)
        )
        last = len(widths) - 1
        self.fusions = nn.ModuleList(
            Fusion(channels, lateral=i < last or deepest_lateral, align_corners=align_corners)
            for i in range(len(widths))
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels, h, w), shallow to deep -> fused maps (B, channels, s*h, s*w).

        s is 8, 4, 2 and 1 in the same order, twice the scales: map i has seen the blocks from i on.
        An odd h or w counts as the next even number.
        """
        fused: list[Tensor] = []
        for reassemble, fusion, x in zip(
            reversed(self.reassemble), reversed(self.fusions), reversed(features), strict=True
        ):
            fused.append(fusion(reassemble(x), *fused[-1:]))
        return fused[::-1]


class DPT(nn.Module):
    """Head on the finest fused map: 3x3 conv-BN-ReLU, dropout, 1x1 classifier.

    Args:
        in_channels: channels of the neck's maps.
        num_classes: number of classes K.
        channels: channels of the convolution; 256 in the paper.
        dropout: channel dropout rate before the classifier.
        final_scale: upsampling factor of the logits after the classifier: 2 in the authors' code,
            1 in mmsegmentation, where only the resize to the image follows.
        align_corners: option of that upsampling; True in the authors' code.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 256,
        dropout: float = 0.1,
        final_scale: int = 1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        require_final_scale(final_scale)
        self.conv = ConvBNReLU(in_channels, channels, 3, bias=False)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.final_scale, self.align_corners = final_scale, align_corners

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps of `DPTNeck`, of which the first is used -> logits (B, K, f*8h, f*8w).

        f is `final_scale`; an odd h or w counts as the next even number.
        """
        logits: Tensor = self.classifier(self.dropout(self.conv(features[0])))
        return upsample(logits, self.final_scale, align_corners=self.align_corners)
