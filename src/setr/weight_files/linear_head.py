"""Combine a published linear head and its frozen encoder into one model.

DINOv2's heads for ADE20K and VOC 2012 are published without the encoder: a batch norm and a 1x1
convolution on the patch tokens of the last block, or of the last four, each after the encoder's
final norm (facebookresearch/dinov2, dinov2/eval/segmentation; Oquab et al. 2023, section 7.4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from setr.arguments.choices import OddSizes
from setr.encoder import Encoder
from setr.errors import SetrError, UsageError
from setr.layers.timm_vit import encoder_depth
from setr.model import SETR
from setr.protocols import Protocol
from setr.weight_files.load_report import LoadReport
from setr.weight_files.naming import Translation, recorded
from setr.weight_files.pretrained import encoder_weights
from setr.weights import match_weights

_WIDTHS = {
    "vit_small_patch14_dinov2": 384,
    "vit_base_patch14_dinov2": 768,
    "vit_large_patch14_dinov2": 1024,
    "vit_giant_patch14_dinov2": 1536,
}
_LAST_FOUR = 4


def join_head(
    found: Translation,
    source: str,
    *,
    pretrained: str | None,
    encoder: str | None = None,
    odd_sizes: OddSizes = "crop",
) -> tuple[SETR, LoadReport]:
    """Build the whole model of a linear head, on the CPU.

    Args:
        found: the head's tensors, of dialect `linear`.
        source: name of its file.
        pretrained: the encoder's weights, as in `load_encoder`.
        encoder: timm name of the encoder; by default the DINOv2 encoder of matching width.
        odd_sizes: see `SETR`.

    Raises:
        SetrError: no `pretrained`, an encoder that does not fit the head, or weights without a
            final norm.
    """
    if pretrained is None:
        raise UsageError(
            f"{source}: holds a linear head without its encoder; add the encoder's weights: "
            "`setr convert FILE --pretrained lvd142m -o DIR` (DINOv2's, downloaded by timm) or "
            "--pretrained FILE; in Python setr.load(path, pretrained=…)"
        )
    given = found.tensors
    num_classes, channels = given["decoder.classifier.weight"].shape[:2]
    encoder, streams = _encoder(channels, encoder, source)
    depth = encoder_depth(encoder)
    taps = tuple(range(depth - streams + 1, depth + 1))
    model = SETR(
        encoder=encoder, decoder="linear", num_classes=num_classes, taps=taps, odd_sizes=odd_sizes
    )
    weights, name = encoder_weights(model, pretrained)
    state, report = match_weights(model, weights, name)
    if weights.whole or "decoder.norms.0.weight" not in state:
        raise UsageError(
            f"{name}: has no final norm, which a linear head needs; give the encoder's own "
            "published weights"
        )
    state |= given
    absent = [n for n in model.state_dict() if n not in state]
    if absent:
        raise SetrError(f"{source}: {absent[0]} is missing; the file is incomplete")
    model.load_state_dict(state)
    report.loaded[:] = state
    report.unexpected.extend(found.unexpected)
    return model.eval(), report


def published_test(model: SETR, meta: Mapping[str, Any]) -> Protocol:
    """The test protocol of a head: the recorded windows, else 512 px, or 640 for four blocks."""
    window = _pair(recorded(meta, "crop_size"))
    if window is None:
        window = (640, 640) if len(model.arguments["taps"]) >= _LAST_FOUR else (512, 512)
    stride = _pair(recorded(meta, "stride")) or (window[0] * 2 // 3, window[1] * 2 // 3)
    return Protocol(window=window, stride=stride, short_side=min(window))


def _pair(value: Any) -> tuple[int, int] | None:
    """Two recorded numbers (height, width); None for anything else."""
    pair = isinstance(value, list | tuple) and len(value) == len("hw")
    return (int(value[0]), int(value[1])) if pair else None


def _encoder(channels: int, encoder: str | None, source: str) -> tuple[str, int]:
    """The encoder's timm name, and the number of its last blocks that the head reads."""
    if encoder:
        with torch.device("meta"):
            width = Encoder(encoder, taps=(1,)).widths[-1]
        if channels % width or channels // width > encoder_depth(encoder):
            raise UsageError(
                f"{source}: its head reads {channels} channels, and {encoder} has {width} per "
                "block; give the encoder that the head was trained on"
            )
        return encoder, channels // width
    fits = [
        (name, count)
        for name, width in _WIDTHS.items()
        for count in (1, _LAST_FOUR)
        if width * count == channels
    ]
    # four blocks of ViT-S are as wide as one of ViT-g
    size = re.search(r"vit([sblg])14", Path(source).name)
    if size and len(fits) > 1:
        fits = [fit for fit in fits if fit[0].startswith(f"vit_{size[1]}")]
    if len(fits) != 1:
        raise UsageError(
            f"{source}: its head reads {channels} channels, which "
            f"{' or '.join(name for name, _ in fits) or 'no DINOv2 encoder'} has; give the "
            "encoder that the head was trained on: --encoder NAME, encoder= in Python"
        )
    return fits[0]
