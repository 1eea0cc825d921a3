"""SETR = encoder + neck + decoder + auxiliary heads.

A call returns logits at the image's size. With `with_aux=True` the same forward returns the logits
of all heads before the resize, so that the loss can fuse the resize, and data-parallel wrappers see
all parameters used.

Shapes: B batch, C image channels (3 by default), H x W image, K classes.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn

from setr.arguments.choices import Neck, OddSizes, PosInterp, PrefixTokens
from setr.arguments.elsewhere_python import HintsAtNames, answers_keywords, hint_at
from setr.arguments.typed import checked
from setr.catalog import DecoderName, model_settings, name_with
from setr.decoders import UpsampleHead
from setr.encoder import Encoder
from setr.errors import UsageError
from setr.layers.mask_classifier import MaskClassifier, MaskOutput, Masks
from setr.layers.outputs import Features as Features
from setr.layers.outputs import Output as Output
from setr.layers.outputs import predictions as predictions
from setr.layers.upsampling import require_final_scale, resize_bilinear
from setr.parts import AUX_HEADS, DECODERS, build_encoder, build_neck, require_fitting
from setr.query_encoder import QueryEncoder
from setr.weight_files.pretrained import default_tag, load_encoder


class SETR(nn.Module, HintsAtNames):
    """A segmentation transformer (paper sections 3.2 and 3.3), or one of the paper's baselines.

    Args:
        encoder: timm name of a ViT, or of a ResNet for the decoders `fcn` and `semantic_fpn`.
        decoder: `naive`, `pup`, `mla`, `segmenter`, `eomt`, `dpt`, `upernet`, `linear` (a linear
            probe), or `fcn` and `semantic_fpn` (the paper's baselines).
        num_classes: number of classes K, 1 to 255.
        taps: encoder blocks that the heads read, counted from 1. MLA, DPT, UPerNet, the linear
            probe and Semantic FPN read all of them, the other decoders the last.
        aux_taps: the taps with an auxiliary head, in the order of `Output.aux`.
        img_size: image side or (height, width) in pixels for which position embeddings are created;
            None keeps the encoder's default.
        resnet: timm name of a ResNet that replaces the patch embedding (the Hybrid model).
        encoder_args: further keyword arguments of `Encoder` or `ResNetEncoder`, and so of
            `timm.create_model`.
        decoder_args: keyword arguments of the decoder class.
        neck_args: keyword arguments of `MLANeck`, `DPTNeck`, `UPerNeck` or `FPNNeck`; UPerNet with
            `feature2pyramid` True has a `FeaturePyramidNeck`.
        aux_args: keyword arguments of the auxiliary heads: `UpsampleHead` for Naive and PUP,
            `PointwiseHead` on the neck's maps for MLA, `FCN` for DPT, UPerNet and the baselines.
        pos_interp: how position embeddings are resampled: `bicubic` (as in timm), `bilinear` (as in
            the 2021 SETR code) or `bicubic_plain` (without antialiasing).
        prefix_tokens: `keep` class and register tokens through the blocks, or `drop` them before
            the first block.
        patch_stride: pixels between neighbouring tokens; None for the patch size, as in the paper.
        merge_tokens: share of the 2x2 groups of patches, 0 to 1, whose tokens become one behind the
            encoder's first block: faster, and less accurate (`set_merge_tokens`).
        odd_sizes: treatment of images whose sides are not multiples of the patch size: `crop` pads
            them and crops the logits; `squeeze` resizes the padded logits to the image, which
            shifts them by up to a patch (mmsegmentation's behaviour, for comparisons only).

    Raises:
        SetrError: unknown parts, or parts that do not fit together.
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
        merge_tokens: float = 0.0,
        odd_sizes: OddSizes = "crop",
    ) -> None:
        super().__init__()
        given = dict(locals())  # a copy: Python 3.12 adds to the original under a debugger
        self.arguments = {k: v for k, v in given.items() if k not in ("self", "__class__")}
        require_fitting(self.arguments)
        self.num_classes = num_classes
        self.odd_sizes = odd_sizes
        self.encoder = build_encoder(
            decoder,
            encoder,
            encoder_args or {},
            taps=tuple(taps),
            resnet=resnet,
            img_size=img_size,
            pos_interp=pos_interp,
            prefix_tokens=prefix_tokens,
            patch_stride=patch_stride,
            merge_tokens=merge_tokens,
        )
        self.neck, widths, fixed = build_neck(decoder, self.encoder, neck_args or {})
        self.decoder = DECODERS[decoder](widths[-1], num_classes, **fixed, **(decoder_args or {}))
        if isinstance(self.decoder, UpsampleHead) and odd_sizes == "crop" and not patch_stride:
            self.decoder.leave_last_to_resize(self.encoder.patch_size)
        self.aux_indices = [tuple(taps).index(tap) for tap in aux_taps]
        aux_class, aux_args = AUX_HEADS[decoder], dict(aux_args or {})
        self.aux_scale = aux_args.pop("final_scale", 1) if aux_class is UpsampleHead else 1
        require_final_scale(self.aux_scale)
        self.aux_reads_encoder = getattr(self.neck, "aux_reads_encoder", False)
        aux_widths = self.encoder.widths if self.aux_reads_encoder else widths
        self.aux_heads = nn.ModuleList(
            aux_class(aux_widths[i], num_classes, **aux_args) for i in self.aux_indices
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError as error:
                raise AttributeError(f"{error}{hint_at(type(self), name)}") from None

    def forward(
        self, images: Tensor | Features, with_aux: bool = False
    ) -> Tensor | Output | MaskOutput:
        """Normalised images (B, C, H, W), any size -> logits (B, K, H, W).

        Logits have the dtype of the weights, or autocast's (those of MLA and EoMT stay in fp32).
        With `with_aux` it returns an `Output`, or the `MaskOutput` of EoMT; this does not depend on
        train or eval mode. `Features` given instead of images go straight to the heads.

        Raises:
            SetrError: images of another shape or type.
        """
        if not isinstance(images, Features):
            self._require_images(images)
            if with_aux and isinstance(self.decoder, MaskClassifier):
                return self._mask_output(images, self.decoder)
            images = Features(self.encode(images), (images.shape[-2], images.shape[-1]))
        H, W = images.size
        size = self.covered_size(H, W)
        if not with_aux:
            logits = self.decoder(self.neck(images.maps))
            return resize(logits, size)[..., :H, :W]
        features = self.neck(images.maps)
        sources = images.maps if self.aux_reads_encoder else features
        aux = [head([sources[i]]) for head, i in zip(self.aux_heads, self.aux_indices, strict=True)]
        return Output(self.decoder(features), aux, size, self.aux_scale, images.size)

    def coarse(self, images: Tensor) -> Output:
        """Images as in `forward` -> logits (B, K, h, w) before the resize, for inference."""
        self._require_images(images)
        logits = self.decoder(self.neck(self.encode(images)))
        return Output(logits, [], self.covered_size(*images.shape[-2:]))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Images as in `forward` -> maps (B, C, h, w) of the taps, for the neck.

        For EoMT the maps of the patches and the queries (B, C, 1, Q).
        """
        if isinstance(self.decoder, MaskClassifier):
            return self.encoder(images, self.decoder.queries)
        return self.encoder(images)

    def _require_images(self, images: Tensor) -> None:
        channels = self.encoder.in_chans
        is_tensor = isinstance(images, Tensor)
        if (
            not (is_tensor and images.ndim == 4 and images.shape[1] == channels)
            or not images.is_floating_point()
            or 0 in images.shape
        ):
            given = f"{tuple(images.shape)} {images.dtype}" if is_tensor else type(images).__name__
            raise UsageError(
                f"images {given}: give normalised floats (B, {channels}, H, W), none of these 0, "
                "as setr.inference.normalize makes them; setr.load(…).predict takes pictures"
            )

    def _mask_output(self, images: Tensor, decoder: MaskClassifier) -> MaskOutput:
        """Predictions before each query block, which guide its attention, and after the last."""
        stages: list[Masks] = []

        def guide(patches: Tensor, queries: Tensor) -> Tensor:
            stages.append(decoder.predict(patches, queries))
            return stages[-1].masks

        stages.append(decoder.predict(*self.encoder(images, decoder.queries, guide)))
        H, W = images.shape[-2:]
        return MaskOutput(stages, self.covered_size(H, W), (H, W))

    def set_progress(self, done: float) -> None:
        """Tell the model which share of the training steps is done, 0 to 1; only EoMT uses it."""
        if isinstance(self.encoder, QueryEncoder):
            self.encoder.set_progress(done)

    def covered_size(self, H: int, W: int) -> tuple[int, int]:
        """Size in pixels that the logits of an H x W image cover: rounded up to whole patches."""
        p = self.encoder.patch_size
        return (H, W) if self.odd_sizes == "squeeze" else (-(-H // p) * p, -(-W // p) * p)

    def layer_depth(self, parameter_name: str) -> int:
        """Distance of a parameter from the heads: 0 in the heads, 1 in the last block, and so on.

        The stem (patch and position embedding) is one further than the first block.
        """
        if not parameter_name.startswith("encoder."):
            return 0
        return self.encoder.layer_depth(parameter_name)

    def set_merge_tokens(self, share: float) -> None:
        """Let the most similar 2x2 groups of patches go through the encoder as one token each.

        No weight changes, so this can be set for a trained model, too.

        Args:
            share: of all groups of each image, 0 to 1; 0 for none.

        Raises:
            SetrError: another share, or an encoder whose blocks need the whole grid of patches.
        """
        if not isinstance(self.encoder, Encoder):
            raise UsageError(f"merge_tokens {share:g}: a ResNet has no tokens")
        self.encoder.set_merge_tokens(share)
        self.arguments["merge_tokens"] = share

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute encoder activations in the backward pass to save memory; False stores them."""
        self.encoder.set_grad_checkpointing(enable)


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits from a decoder's resolution to `size`: bilinear, align_corners=False."""
    if logits.shape[-2:] == size:
        return logits
    return resize_bilinear(logits, size)


def _encoder_argument(name: str) -> str:
    """How to give an argument that may be one of timm's encoder; empty for one of `SETR`."""
    if name in inspect.signature(SETR.__init__).parameters:
        return ""
    return f"use encoder_args={{'{name}': …}} for one of timm's encoder"


@answers_keywords("create_model", _encoder_argument)
@checked
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
    neck: Neck = "ln_mln",
    in_chans: int = 3,
    **arguments: Any,
) -> SETR:
    """Build a named model, for example `create_model("setr_pup_base", num_classes=19)`.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes K, 1 to 255.
        img_size: image side or (height, width) in pixels for which position embeddings are created;
            other sizes work, too.
        encoder: timm name of a ViT that replaces the default encoder (of a ResNet for the
            baselines).
        pretrained: encoder weights: None or False for random, a checkpoint file, `owner/name` on
            the Hub, a tag of weights that timm downloads, for example `augreg_in21k` or `deit`, or
            True for timm's default weights.
        pretrained_resnet: weights for the ResNet of a Hybrid model, for example `gluon_in1k`.
        aux: add the auxiliary heads, which only training uses.
        channels: number of channels of the heads' convolutions, 256 in the paper; for Segmenter,
            the decoder's embedding width, by default the encoder's; for UPerNet, 512 by default.
            Not for EoMT, the linear probe and the baselines.
        taps: blocks that the heads read, counted from 1; by default the paper's. Not for EoMT and
            the baselines.
        align_corners: option of MLA's and DPT's upsampling; True as in the authors' code. True
            shifts maps by up to half a patch towards the borders, by an amount that depends on the
            image size: choose False to test on whole images of another size than the training
            crops.
        neck: UPerNet's neck: `mln` resamples the maps to four sizes, `ln_mln` also normalises the
            last one first, `none` leaves all as they are; `feature2pyramid` enlarges and pools
            them, as on BEiT and MAE.
        in_chans: number of image channels. Pretrained RGB weights are adapted as in timm: summed
            for one channel, else repeated and scaled by 3 / in_chans.
        arguments: further keyword arguments of `SETR`; `encoder_args`, `decoder_args`, `neck_args`
            and `aux_args` are merged into the model's own.

    Raises:
        SetrError: unknown name (similar names are listed), encoder or weights; a decoder other than
            the model's; ResNet weights for a model without a ResNet stem.
    """
    if in_chans < 1:
        raise UsageError(f"in_chans {in_chans}: give at least one channel")
    encoder_args = {**(arguments.pop("encoder_args", None) or {})}
    if in_chans != 3:
        encoder_args["in_chans"] = in_chans
    settings = model_settings(
        name,
        encoder=encoder,
        channels=channels,
        taps=taps,
        align_corners=align_corners,
        neck=neck,
        encoder_args=encoder_args,
    )
    own, decoder = settings["decoder"], arguments.get("decoder", settings["decoder"])
    if decoder != own and decoder in get_args(DecoderName):
        raise UsageError(
            f"decoder '{decoder}': {name} has the decoder {own}; create "
            f"'{name_with(decoder, name)}'"
        )
    if not aux:
        settings["aux_taps"] = ()
    for key, given in arguments.items():
        if key.endswith("_args"):
            given = {**settings.get(key, {}), **(given or {})}
        settings[key] = given
    model = SETR(num_classes=num_classes, img_size=img_size, **settings)
    if pretrained_resnet and not settings.get("resnet"):
        raise UsageError(f"pretrained_resnet: {name} has no ResNet stem; give pretrained= instead")
    if pretrained is True:
        pretrained = default_tag(settings["encoder"])
    if pretrained:
        load_encoder(model, os.fspath(pretrained))
    if pretrained_resnet:
        load_encoder(model, os.fspath(pretrained_resnet), resnet=True)
    return model
