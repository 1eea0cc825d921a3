"""The parts of a model by the decoder's name: encoder, neck, decoder and auxiliary heads.

Also which of them fit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from torch import nn

from setr.arguments.choices import OddSizes, PosInterp, PrefixTokens
from setr.baselines import FCN, FPNNeck, SemanticFPN, require_pyramid
from setr.catalog import DecoderName
from setr.decoders import MLA, PUP, MLANeck, Naive, PointwiseHead, UpsampleHead
from setr.encoder import Encoder
from setr.errors import UsageError
from setr.hybrid import ResNetEncoder, hybrid_encoder
from setr.labels import IGNORE
from setr.layers.backbone import Backbone
from setr.layers.dpt import DPT, DPTNeck
from setr.layers.feature_pyramid import FeaturePyramidNeck
from setr.layers.linear import Linear
from setr.layers.mask_classifier import MaskClassifier
from setr.layers.mask_transformer import MaskTransformer
from setr.layers.timm_vit import timm_module
from setr.layers.upernet import UPerHead, UPerNeck
from setr.query_encoder import QueryEncoder

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
"""By the decoder's name."""
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
"""By the decoder's name, too."""
_BIASED = "its position bias has no values for EoMT's queries"
_MASKLESS = "its blocks take no masks, which EoMT's attention needs"
_WITHOUT_QUERIES = {
    **dict.fromkeys(("beit", "vision_transformer_relpos"), _BIASED),
    "vision_transformer_sam": "its windows have no place for EoMT's queries",
    **dict.fromkeys(("cait", "convit", "deepseek_vit"), _MASKLESS),
    "gemma4_vit": "its blocks rotate all tokens, and EoMT's queries have no place",
}
"""Why EoMT cannot have the ViTs of a module of timm."""
_CONVOLUTIONAL = ("fcn", "semantic_fpn")
"""The baselines' decoders, which read a ResNet."""


def require_fitting(given: Mapping[str, Any]) -> None:
    """Raise `SetrError` for unknown parts, and for parts that do not fit together.

    Args:
        given: all keyword arguments of `SETR`.
    """
    num_classes, decoder, encoder = given["num_classes"], given["decoder"], given["encoder"]
    if not 1 <= num_classes <= IGNORE:
        raise UsageError(f"num_classes {num_classes}: ids are 8-bit; give 1 to {IGNORE}")
    if decoder not in DECODERS:
        raise UsageError(f"decoder '{decoder}' is unknown; choose from {', '.join(DECODERS)}")
    choices = {"pos_interp": PosInterp, "prefix_tokens": PrefixTokens, "odd_sizes": OddSizes}
    for name, known in choices.items():
        if given[name] not in get_args(known):
            raise UsageError(f"{name} {given[name]!r}: give {' or '.join(get_args(known))}")
    if not set(given["aux_taps"]) <= set(given["taps"]):
        raise UsageError(f"aux_taps {given['aux_taps']}: must be among the taps {given['taps']}")
    if decoder == "eomt":
        reads = (given["encoder_args"] or {}).get("readout", "ignore") != "ignore"
        if given["resnet"] or given["aux_taps"] or given["patch_stride"] or reads:
            raise UsageError(
                "resnet, aux_taps, patch_stride, readout: EoMT has none of them; leave them out"
            )
        _require_place_for_queries(encoder)
    positioned = given["pos_interp"] != "bicubic" or given["prefix_tokens"] != "keep"
    tokens = given["patch_stride"] or given["merge_tokens"]
    if decoder in _CONVOLUTIONAL and (positioned or tokens):
        raise UsageError(
            f"pos_interp, prefix_tokens, patch_stride, merge_tokens: {encoder} has none of them; "
            "leave them out"
        )


def _require_place_for_queries(encoder: str) -> None:
    """Raise `SetrError` for encoders whose attention has no place for EoMT's queries."""
    why = _WITHOUT_QUERIES.get(timm_module(encoder))
    if why:
        raise UsageError(
            f"encoder '{encoder}': {why}; choose another encoder, for example "
            "vit_base_patch14_reg4_dinov2"
        )


def build_encoder(
    decoder: DecoderName,
    name: str,
    arguments: Mapping[str, Any],
    *,
    taps: tuple[int, ...],
    resnet: str | None,
    **vit_args: Any,
) -> Backbone:
    """The encoder that a decoder reads.

    Args:
        name: timm name of a ViT, or of a ResNet for the baselines.
        arguments: further keyword arguments of the encoder.
        taps: numbers of the blocks or stages to return.
        resnet: timm name of a ResNet that replaces the patch embedding.
        vit_args: keyword arguments that only a ViT takes.
    """
    if decoder in _CONVOLUTIONAL:
        backbone = ResNetEncoder(name, taps=taps, **arguments)
        if decoder == "semantic_fpn":
            require_pyramid(backbone.strides)
        return backbone
    if resnet:
        return hybrid_encoder(name, resnet=resnet, taps=taps, **vit_args, **arguments)
    kind = QueryEncoder if decoder == "eomt" else Encoder
    return kind(name, taps=taps, **vit_args, **arguments)


def build_neck(
    decoder: DecoderName, encoder: Backbone, arguments: Mapping[str, Any]
) -> tuple[nn.Module, list[int], dict[str, Any]]:
    """The neck between an encoder and a decoder; the identity for most.

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
