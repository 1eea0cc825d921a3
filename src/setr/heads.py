"""What follows the encoder, by the decoder's name: necks, decoders and auxiliary heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from setr.baselines import FCN, FPNNeck, SemanticFPN
from setr.catalog import DecoderName
from setr.decoders import MLA, PUP, MLANeck, Naive, PointwiseHead, UpsampleHead
from setr.encoder import Encoder
from setr.layers.backbone import Backbone
from setr.layers.dpt import DPT, DPTNeck
from setr.layers.feature_pyramid import FeaturePyramidNeck
from setr.layers.linear import Linear
from setr.layers.mask_classifier import MaskClassifier
from setr.layers.mask_transformer import MaskTransformer
from setr.layers.upernet import UPerHead, UPerNeck

DECODERS: dict[str, Any] = {
    "naive": Naive,
    "pup": PUP,
    "mla": MLA,
    "segmenter": MaskTransformer,
    "eomt": MaskClassifier,
    "dpt": DPT,
    "upernet": UPerHead,
    "linear": Linear,
    "fcn": FCN,
    "semantic_fpn": SemanticFPN,
}
AUX_HEADS: dict[str, Any] = {
    "naive": UpsampleHead,
    "pup": UpsampleHead,
    "mla": PointwiseHead,
    "segmenter": PointwiseHead,
    "eomt": PointwiseHead,
    "dpt": FCN,
    "upernet": FCN,
    "linear": PointwiseHead,
    "fcn": FCN,
    "semantic_fpn": FCN,
}


def build_neck(
    decoder: DecoderName, encoder: Backbone, arguments: Mapping[str, Any]
) -> tuple[nn.Module, list[int], dict[str, Any]]:
    """The neck between an encoder and a decoder; the identity for most.

    Args:
        decoder: name of the decoder.
        encoder: the encoder, whose maps it takes.
        arguments: keyword arguments of the neck.

    Returns:
        The neck, the number of channels of each of its maps, and the keyword arguments of the
        decoder that follow from both.
    """
    widths = encoder.widths
    streams = {"num_streams": len(widths)}
    if decoder in ("mla", "semantic_fpn"):
        neck = (MLANeck if decoder == "mla" else FPNNeck)(widths, **arguments)
        return neck, [neck.channels] * len(widths), streams
    if decoder == "dpt":
        fusing = DPTNeck(widths, width=cast(Encoder, encoder).channels, **arguments)
        return fusing, [fusing.channels] * len(widths), {}
    if decoder == "upernet":
        kind = FeaturePyramidNeck if arguments.get("feature2pyramid") else UPerNeck
        given = {key: value for key, value in arguments.items() if key != "feature2pyramid"}
        levels = kind(widths, **given)
        shape = {"channels": levels.channels, "pyramid": levels.pyramid}
        return levels, levels.widths, {**streams, **shape}
    if decoder == "eomt":
        return nn.Identity(), widths, {"patch_size": encoder.patch_size}
    return nn.Identity(), widths, streams if decoder == "linear" else {}
