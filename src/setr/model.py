"""SETR = encoder + neck + decoder + auxiliary heads.

The plain call returns logits at the image's size. `with_aux=True` returns un-resized logits of
every head through the same forward, so that the loss can fuse the resize and data-parallel wrappers
see every parameter used.

Shapes: B batch, C channels of the images (3 unless made for others), H x W image, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from setr.arguments.choices import OddSizes, PosInterp, PrefixTokens
from setr.baselines import FCN, FPNNeck, SemanticFPN, require_pyramid
from setr.catalog import DecoderName, model_settings, name_with
from setr.decoders import (
    MLA,
    PUP,
    MLANeck,
    Naive,
    PointwiseHead,
    UpsampleHead,
    require_final_scale,
)
from setr.encoder import Encoder
from setr.errors import USAGE, SetrError
from setr.hybrid import ResNetEncoder, hybrid_encoder
from setr.labels import IGNORE
from setr.layers.backbone import Backbone
from setr.layers.linear import Linear
from setr.layers.mask_transformer import MaskTransformer
from setr.weight_files.pretrained import default_tag, load_encoder


class Output(NamedTuple):
    """Un-resized predictions of every head.

    Attributes:
        logits: (B, K, h, w) of the main decoder, at its own scale.
        aux: the same of each auxiliary head, in the order of `aux_taps`.
        size: (H', W') to resize to: the image padded at the bottom and right to whole patches.
        aux_scale: bilinear upsampling of the auxiliary logits before that resize, left to the loss;
            by 4 and then by 4 differs from by 16.
    """

    logits: Tensor
    aux: list[Tensor]
    size: tuple[int, int]
    aux_scale: int = 1


class Features(NamedTuple):
    """What an encoder makes of images, given to a model in place of them.

    Attributes:
        maps: one (B, C, h, w) per tapped block.
        size: (H, W) of the images in pixels.
    """

    maps: list[Tensor]
    size: tuple[int, int]


class SETR(nn.Module):
    """A segmentation transformer (paper sections 3.2 and 3.3), or one of the paper's baselines.

    Args:
        encoder: timm id of a ViT, or of a ResNet for the decoders `fcn` and `semantic_fpn`.
        decoder: `naive`, `pup`, `mla`; `segmenter`; `linear` for a probe; `fcn`, `semantic_fpn` for
            the baselines.
        num_classes: K, 1 to 255.
        taps: encoder blocks (from 1) that the heads read; the decoder reads the last one, MLA, the
            probe and Semantic FPN all.
        aux_taps: the taps that carry an auxiliary head, in the order of `Output.aux`.
        img_size: image side or (height, width) the position grid is made for; None keeps the
            encoder's own.
        resnet: timm id of a ResNet in place of the patch embedding (the Hybrid model).
        encoder_args: further keywords of `timm.create_model`.
        decoder_args: keywords of the decoder class.
        neck_args: keywords of `MLANeck` or `FPNNeck`.
        aux_args: keywords of the auxiliary heads: `UpsampleHead` for Naive and PUP, `PointwiseHead`
            on the neck's maps for MLA, `FCN` for the baselines.
        pos_interp: how position embeddings are resampled, `bicubic` (as timm) or `bilinear` (2021).
        prefix_tokens: `keep` class and register tokens through the blocks, or `drop` them before.
        patch_stride: pixels from one token to the next; None, the patch size, as in the paper.
        odd_sizes: what happens to images whose sides are no multiples of the patch: `crop` pads
            them and cuts the logits back; `squeeze` resizes the padded logits to the image, which
            shifts them by up to a patch: mmsegmentation's behaviour, for comparisons only.

    Raises:
        SetrError: parts that are unknown or do not fit together.
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
        resnet: str | None = None,
        encoder_args: Mapping[str, Any] | None = None,
        decoder_args: Mapping[str, Any] | None = None,
        neck_args: Mapping[str, Any] | None = None,
        aux_args: Mapping[str, Any] | None = None,
        pos_interp: PosInterp = "bicubic",
        prefix_tokens: PrefixTokens = "keep",
        patch_stride: int | None = None,
        odd_sizes: OddSizes = "crop",
    ) -> None:
        super().__init__()
        self.arguments = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        if not 1 <= num_classes <= IGNORE:
            raise SetrError(
                f"num_classes {num_classes}: ids are 8-bit; give 1 to {IGNORE}", code=USAGE
            )
        if decoder not in _DECODERS:
            raise SetrError(
                f"decoder '{decoder}' is unknown; there are {', '.join(_DECODERS)}", code=USAGE
            )
        for name, value, known in (
            ("pos_interp", pos_interp, get_args(PosInterp)),
            ("prefix_tokens", prefix_tokens, get_args(PrefixTokens)),
            ("odd_sizes", odd_sizes, get_args(OddSizes)),
        ):
            if value not in known:
                raise SetrError(f"{name} {value!r}: give {' or '.join(known)}", code=USAGE)
        if not set(aux_taps) <= set(taps):
            raise SetrError(f"aux_taps {aux_taps}: must be among the taps {taps}", code=USAGE)
        convolutional = decoder in ("fcn", "semantic_fpn")
        if convolutional and (pos_interp != "bicubic" or prefix_tokens != "keep" or patch_stride):
            raise SetrError(
                f"pos_interp, prefix_tokens, patch_stride: {encoder} has none of them; leave them "
                "out",
                code=USAGE,
            )
        self.num_classes = num_classes
        self.odd_sizes = odd_sizes
        vit_args: dict[str, Any] = {
            "img_size": img_size,
            "pos_interp": pos_interp,
            "prefix_tokens": prefix_tokens,
            "patch_stride": patch_stride,
        }
        self.encoder: Backbone
        if convolutional:
            self.encoder = ResNetEncoder(encoder, taps=tuple(taps), **(encoder_args or {}))
            if decoder == "semantic_fpn":
                require_pyramid(self.encoder.strides)
        elif resnet:
            self.encoder = hybrid_encoder(
                encoder, resnet=resnet, taps=tuple(taps), **vit_args, **(encoder_args or {})
            )
        else:
            self.encoder = Encoder(encoder, taps=tuple(taps), **vit_args, **(encoder_args or {}))
        widths = self.encoder.widths
        self.neck: nn.Module = nn.Identity()
        streams = {"num_streams": len(taps)} if decoder == "linear" else {}
        if decoder in ("mla", "semantic_fpn"):
            neck = (MLANeck if decoder == "mla" else FPNNeck)(widths, **(neck_args or {}))
            self.neck, widths = neck, [neck.channels] * len(taps)
            streams = {"num_streams": len(taps)}
        self.decoder = _DECODERS[decoder](
            widths[-1], num_classes, **streams, **(decoder_args or {})
        )
        if isinstance(self.decoder, UpsampleHead) and odd_sizes == "crop" and not patch_stride:
            self.decoder.leave_last_to_resize(self.encoder.patch_size)
        self.aux_indices = [tuple(taps).index(tap) for tap in aux_taps]
        aux_class, aux_args = _AUX_HEADS[decoder], dict(aux_args or {})
        self.aux_scale = aux_args.pop("final_scale", 1) if aux_class is UpsampleHead else 1
        require_final_scale(self.aux_scale)
        self.aux_heads = nn.ModuleList(
            aux_class(widths[i], num_classes, **aux_args) for i in self.aux_indices
        )

    def forward(self, images: Tensor | Features, with_aux: bool = False) -> Tensor | Output:
        """Normalised images (B, C, H, W), any size -> logits (B, K, H, W), or `Output`.

        The return type depends on `with_aux` alone, never on train or eval mode. `Features` of a
        frozen encoder go straight to the heads.
        """
        if not isinstance(images, Features):
            images = Features(self.encoder(images), (images.shape[-2], images.shape[-1]))
        H, W = images.size
        if with_aux:
            features = self.neck(images.maps)
            aux = [
                head([features[i]])
                for head, i in zip(self.aux_heads, self.aux_indices, strict=True)
            ]
            return Output(self.decoder(features), aux, self.covered_size(H, W), self.aux_scale)
        logits = self.decoder(self.neck(images.maps))
        return resize(logits, self.covered_size(H, W))[..., :H, :W]

    def coarse(self, images: Tensor) -> Output:
        """Images as in `forward` -> un-resized logits without auxiliary ones, for inference."""
        logits = self.decoder(self.neck(self.encoder(images)))
        return Output(logits, [], self.covered_size(*images.shape[-2:]))

    def covered_size(self, H: int, W: int) -> tuple[int, int]:
        """The size in pixels that logits of an H x W image cover: rounded up to whole patches."""
        p = self.encoder.patch_size
        return (H, W) if self.odd_sizes == "squeeze" else (-(-H // p) * p, -(-W // p) * p)

    def layer_depth(self, parameter_name: str) -> int:
        """Distance of a parameter from the heads: 0 in the heads, 1 in the last block, and so on.

        The stem (patch and position embedding) is one farther than the first block.
        """
        if not parameter_name.startswith("encoder."):
            return 0
        return self.encoder.layer_depth(parameter_name)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute encoder activations in the backward pass to save memory."""
        self.encoder.set_grad_checkpointing(enable)


_DECODERS: dict[str, Any] = {
    "naive": Naive,
    "pup": PUP,
    "mla": MLA,
    "segmenter": MaskTransformer,
    "linear": Linear,
    "fcn": FCN,
    "semantic_fpn": SemanticFPN,
}
_AUX_HEADS: dict[str, Any] = {
    "naive": UpsampleHead,
    "pup": UpsampleHead,
    "mla": PointwiseHead,
    "segmenter": PointwiseHead,
    "linear": PointwiseHead,
    "fcn": FCN,
    "semantic_fpn": FCN,
}


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The one resize from a decoder's scale to the image: bilinear, align_corners=False."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def create_model(
    name: str,
    *,
    num_classes: int,
    img_size: int | tuple[int, int] | None = None,
    encoder: str | None = None,
    pretrained: str | os.PathLike | bool | None = None,
    pretrained_resnet: str | os.PathLike | None = None,
    aux: bool = True,
    channels: int | None = None,
    taps: tuple[int, ...] | None = None,
    align_corners: bool = True,
    in_chans: int = 3,
    **arguments: Any,
) -> SETR:
    """Build a named model, for example `create_model("setr_pup_base", num_classes=19)`.

    Args:
        name: one of `list_models()`.
        num_classes: K, 1 to 255.
        img_size: image side or (height, width) the position grid is made for.
        encoder: any timm ViT id in place of the name's own (a ResNet for the baselines).
        pretrained: encoder weights: None or False for random, a checkpoint file, `owner/name` on
            the Hub, a tag that timm downloads, for example `augreg_in21k` or `deit`, or True for
            timm's own choice.
        pretrained_resnet: the same for the ResNet of a Hybrid, for example `gluon_in1k`.
        aux: with the auxiliary heads at the paper's layers, which only training needs.
        channels: width of the heads' convolutions, 256 in the paper, or of Segmenter's decoder, by
            default the encoder's. Not for the baselines.
        taps: blocks the heads read, from 1, in place of the paper's. Not for the baselines.
        align_corners: of MLA's x4 upsampling, as in the authors' code. It shifts maps by up to half
            a patch towards the borders, differently at each image size: choose False where images
            are tested whole, at another size than the training crops.
        in_chans: channels of the images, from 1. Pretrained weights of three are adapted as timm
            does: summed for one channel, else repeated and scaled by 3 / in_chans.
        arguments: further keywords of `SETR`; what is in `encoder_args`, `decoder_args`,
            `neck_args` and `aux_args` joins the name's own.

    Raises:
        SetrError: unknown name (the nearest are listed), encoder or weights; a decoder that is not
            the name's own; weights of a ResNet that the model does not have.
    """
    if in_chans < 1:
        raise SetrError(f"in_chans {in_chans}: give at least one channel", code=USAGE)
    encoder_args = {**(arguments.pop("encoder_args", None) or {})}
    if in_chans != 3:
        encoder_args["in_chans"] = in_chans
    settings = model_settings(
        name,
        encoder=encoder,
        channels=channels,
        taps=taps,
        align_corners=align_corners,
        encoder_args=encoder_args,
    )
    own, decoder = settings["decoder"], arguments.get("decoder", settings["decoder"])
    if decoder != own and decoder in get_args(DecoderName):
        raise SetrError(
            f"decoder '{decoder}': {name} has the decoder {own}; create "
            f"'{name_with(decoder, name)}'",
            code=USAGE,
        )
    if not aux:
        settings["aux_taps"] = ()
    for key, given in arguments.items():
        if key.endswith("_args"):
            given = {**settings.get(key, {}), **(given or {})}
        settings[key] = given
    model = SETR(num_classes=num_classes, img_size=img_size, **settings)
    if pretrained_resnet and not settings.get("resnet"):
        raise SetrError(
            f"pretrained_resnet: {name} has no ResNet in front of its encoder; give pretrained=",
            code=USAGE,
        )
    if pretrained is True:
        pretrained = default_tag(settings["encoder"])
    if pretrained:
        load_encoder(model, os.fspath(pretrained))
    if pretrained_resnet:
        load_encoder(model, os.fspath(pretrained_resnet), resnet=True)
    return model
