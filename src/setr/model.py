"""SETR = encoder + decoder + auxiliary heads, and the table of named models.

The plain call returns logits at the image's size. `with_aux=True` returns un-resized logits of
every head through the same forward, so that the loss can fuse the resize and data-parallel wrappers
see every parameter used.

Shapes: B batch, H x W image, K classes.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from setr.decoders import MLA, PUP, MLANeck, Naive, UpsampleHead
from setr.encoder import Encoder, PosInterp, PrefixTokens
from setr.errors import SetrError
from setr.weights import load_encoder

DecoderName = Literal["naive", "pup", "mla"]


class Output(NamedTuple):
    """Un-resized predictions of every head.

    Attributes:
        logits: (B, K, h, w) of the main decoder, at its own scale.
        aux: the same of each auxiliary head, shallow to deep.
        size: (H', W') to resize to: the image padded at the bottom and right to whole patches.
    """

    logits: Tensor
    aux: list[Tensor]
    size: tuple[int, int]


class SETR(nn.Module):
    """A segmentation transformer (paper sections 3.2 and 3.3).

    Args:
        encoder: timm model id.
        decoder: `naive`, `pup` or `mla`.
        num_classes: K.
        taps: encoder blocks (from 1) that the heads read; the decoder reads the last one, MLA all.
        aux_taps: the taps that carry an auxiliary head; empty for none.
        img_size: image side or (height, width) the position grid is made for; None keeps the
            encoder's own.
        encoder_args: further keywords of `timm.create_model`.
        decoder_args: keywords of the decoder class.
        neck_args: keywords of `MLANeck`.
        aux_args: keywords of the auxiliary heads (`UpsampleHead`; ignored by MLA, whose auxiliary
            heads are one 1x1 convolution on the neck's maps).
        pos_interp: see `Encoder`.
        prefix_tokens: see `Encoder`.
    """

    def __init__(
        self,
        *,
        encoder: str,
        decoder: DecoderName,
        num_classes: int,
        taps: tuple[int, ...],
        aux_taps: tuple[int, ...] = (),
        img_size: int | tuple[int, int] | None = None,
        encoder_args: Mapping[str, Any] | None = None,
        decoder_args: Mapping[str, Any] | None = None,
        neck_args: Mapping[str, Any] | None = None,
        aux_args: Mapping[str, Any] | None = None,
        pos_interp: PosInterp = "bicubic",
        prefix_tokens: PrefixTokens = "keep",
    ) -> None:
        super().__init__()
        self.arguments = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        if num_classes < 1:
            raise SetrError(f"num_classes {num_classes}: a model needs at least one class")
        if not set(aux_taps) <= set(taps):
            raise SetrError(f"aux_taps {aux_taps}: must be among the taps {taps}")
        self.num_classes = num_classes
        self.encoder = Encoder(
            encoder,
            taps=tuple(taps),
            img_size=img_size,
            pos_interp=pos_interp,
            prefix_tokens=prefix_tokens,
            **(encoder_args or {}),
        )
        width = self.encoder.channels
        self.neck: nn.Module
        self.decoder: nn.Module
        if decoder == "mla":
            neck = MLANeck(width, num_streams=len(taps), **(neck_args or {}))
            self.neck, width = neck, neck.channels
            self.decoder = MLA(width, num_classes, num_streams=len(taps), **(decoder_args or {}))
        else:
            self.neck = nn.Identity()
            head: type[UpsampleHead] = Naive if decoder == "naive" else PUP
            self.decoder = head(width, num_classes, **(decoder_args or {}))
        self.aux_indices = [tuple(taps).index(tap) for tap in aux_taps]
        self.aux_heads = nn.ModuleList(
            _PointwiseHead(width, num_classes, **(aux_args or {}))
            if decoder == "mla"
            else UpsampleHead(width, num_classes, **(aux_args or {}))
            for _ in aux_taps
        )

    def forward(self, images: Tensor, with_aux: bool = False) -> Tensor | Output:
        """Normalised images (B, 3, H, W), any size -> logits (B, K, H, W), or `Output`.

        The return type depends on `with_aux` alone, never on train or eval mode.
        """
        features = self.neck(self.encoder(images))
        logits = self.decoder(features)
        H, W = images.shape[-2:]
        size = self.padded_size(H, W)
        if with_aux:
            aux = [
                head([features[i]])
                for head, i in zip(self.aux_heads, self.aux_indices, strict=True)
            ]
            return Output(logits, aux, size)
        return resize(logits, size)[..., :H, :W]

    def coarse(self, images: Tensor) -> Output:
        """Images as in `forward` -> un-resized logits without auxiliary ones, for inference."""
        logits = self.decoder(self.neck(self.encoder(images)))
        return Output(logits, [], self.padded_size(images.shape[-2], images.shape[-1]))

    def padded_size(self, H: int, W: int) -> tuple[int, int]:
        """The image size rounded up to whole patches."""
        p = self.encoder.patch_size
        return -(-H // p) * p, -(-W // p) * p


class _PointwiseHead(nn.Module):
    """MLA's auxiliary head: one 1x1 convolution; without bias in the authors' code."""

    def __init__(self, in_channels: int, num_classes: int, *, bias: bool = False) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(in_channels, num_classes, 1, bias=bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        out: Tensor = self.classifier(features[-1])
        return out


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The one resize from a decoder's scale to the image: bilinear, align_corners=False."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


# --- named models ---------------------------------------------------------------------------------


class _Size(NamedTuple):
    """An encoder size: timm id, depth, timm keywords, and the width of the heads' convolutions."""

    encoder: str
    depth: int
    args: dict[str, Any]
    channels: int = 256


_SIZES = {
    # the demo's: small images in 8 px patches, trained from random weights in minutes
    "nano": _Size(
        "vit_tiny_patch16_224",
        6,
        {"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4},
        channels=64,
    ),
    "tiny": _Size("vit_tiny_patch16_384", 12, {}),
    "small": _Size("vit_small_patch16_384", 12, {}),
    "base": _Size("vit_base_patch16_384", 12, {}),
    "large": _Size("vit_large_patch16_384", 24, {}),
}
_DECODERS: tuple[DecoderName, ...] = ("naive", "pup", "mla")


def default_taps(decoder: DecoderName, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks read by the heads: (taps, aux_taps), counted from 1.

    Depth 24 follows section 4.1 ("Auxiliary loss"), depth 12 the authors' configurations (Naive
    auxiliary 3, 6, 9; PUP auxiliary 5, 8, 10, 12; MLA 3, 6, 9, 12). Other depths are spread evenly.
    """
    quarters = tuple(max(1, round(depth * i / 4)) for i in (1, 2, 3, 4))
    late = {24: (10, 15, 20, 24), 12: (5, 8, 10, 12)}.get(depth, quarters)
    if decoder == "mla":
        return quarters, quarters
    if decoder == "pup":
        return late, late
    taps = (10, 15, 20, 24) if depth == 24 else quarters
    return taps, taps[:-1]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models `create_model` knows, filtered by a shell pattern."""
    names = [f"setr_{decoder}_{size}" for decoder in _DECODERS for size in _SIZES]
    return fnmatch.filter(names, pattern)


def create_model(
    name: str,
    *,
    num_classes: int,
    img_size: int | tuple[int, int] | None = None,
    encoder: str | None = None,
    pretrained: str | None = None,
    aux: bool = True,
    channels: int | None = None,
    **arguments: Any,
) -> SETR:
    """Build a named model, for example `create_model("setr_pup_base", num_classes=19)`.

    Args:
        name: one of `list_models()`.
        num_classes: K.
        img_size: image side or (height, width) the position grid is made for.
        encoder: any timm ViT id in place of the name's own.
        pretrained: encoder weights: None for random, or a path to a checkpoint.
        aux: with the auxiliary heads at the paper's layers, which only training needs.
        channels: width of the heads' convolutions; 256 in the paper.
        arguments: further keywords of `SETR`.

    Raises:
        SetrError: unknown name (the nearest are listed), encoder or weights.
    """
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), 3, cutoff=0.3)
        raise SetrError(f"model '{name}' is unknown; nearest: {', '.join(near)}")
    _, decoder, size_name = name.split("_")
    size = _SIZES[size_name]
    encoder_args = {**({} if encoder else size.args), **arguments.pop("encoder_args", {})}
    depth = encoder_depth(encoder) if encoder else size.depth
    taps, aux_taps = default_taps(decoder, depth)  # type: ignore[arg-type]
    aux_taps = arguments.pop("aux_taps", aux_taps if aux else ())
    for key, value in _head_arguments(decoder, channels or size.channels).items():
        arguments.setdefault(key, value)
    model = SETR(
        encoder=encoder or size.encoder,
        decoder=decoder,  # type: ignore[arg-type]
        num_classes=num_classes,
        taps=arguments.pop("taps", taps),
        aux_taps=aux_taps,
        img_size=img_size,
        encoder_args=encoder_args,
        **arguments,
    )
    if pretrained is not None:
        load_encoder(model.encoder, pretrained)
    return model


def _head_arguments(decoder: str, channels: int) -> dict[str, Any]:
    """Keywords of the heads: the paper's, with `channels` for its 256."""
    if decoder == "mla":
        return {
            "neck_args": {"channels": channels},
            "decoder_args": {"stream_channels": channels // 2},
        }
    if decoder == "naive":
        return {"decoder_args": {"channels": channels}, "aux_args": {"channels": channels}}
    return {
        "decoder_args": {"channels": channels},
        "aux_args": {"channels": channels, "kernel_size": 3, "final_scale": 4},
    }


def encoder_depth(name: str) -> int:
    """Number of blocks of a timm ViT, without allocating its weights."""
    import torch

    from setr.encoder import _create_vit

    with torch.device("meta"):
        return len(_create_vit(name, img_size=None).blocks)
