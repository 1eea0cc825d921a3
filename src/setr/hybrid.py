"""Convolutional encoders: the Hybrid model's stem and the baselines' backbone.

Hybrid (paper section 4.1, "SETR variants"): a ResNet-50 with output stride 16 and a 1x1 projection
replace a ViT's patch embedding, so a token still covers 16x16 pixels. The paper gives no further
detail; in its code base, output stride 16 means dilation in the last stage.

Shapes: B batch, H x W image.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from setr.encoder import Encoder
from setr.errors import UsageError, first_line
from setr.layers.backbone import Backbone, require_taps
from setr.layers.timm_vit import require_architecture

HYBRID_STRIDE = 16


class ResNetEncoder(Backbone):
    """A timm ResNet, returning one feature map per selected stage.

    Args:
        name: timm name of a ResNet, for example `resnet101c` (the variant with a stem of 3x3
            convolutions that the paper's code base uses).
        taps: numbers of the residual stages to return, 1 to 4, ascending.
        output_stride: 32, or 16 or 8, where dilation replaces the last strides.
        timm_args: further keyword arguments of `timm.create_model`, for example `in_chans`.

    Attributes:
        strides: output stride of each map.

    Raises:
        SetrError: unknown model name or taps, or a network without stages layer1 to layer4.
    """

    stage_pattern = r"\.layer(\d)\."
    first_stage = 1

    def __init__(
        self, name: str, *, taps: tuple[int, ...], output_stride: int = 32, **timm_args: Any
    ) -> None:
        super().__init__()
        self.net = _create_resnet(name, taps, output_stride, **timm_args)
        if not hasattr(self.net, "layer1"):
            raise UsageError(
                f"encoder '{name}': its stages are not called layer1 to layer4; choose a plain "
                "ResNet, for example resnet50 or resnet101c"
            )
        self.taps = tuple(taps)
        self.widths = self.net.feature_info.channels()
        self.strides: list[int] = self.net.feature_info.reduction()
        self.patch_size = output_stride
        self.in_chans = timm_args.get("in_chans", 3)

    def stages(self) -> list[nn.Module]:
        """The residual stages up to the last tap."""
        return [getattr(self.net, f"layer{i}") for i in range(1, self.taps[-1] + 1)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the stages in the backward pass to save memory."""
        self.net.set_grad_checkpointing(enable)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, in_chans, H, W) -> one map per tap, at strides 4 to 32.

        Images are padded with zeros at the bottom and right to multiples of the output stride.
        """
        return self.net(self.padded(images)[0])


def hybrid_encoder(name: str, *, resnet: str, img_size: Any, **arguments: Any) -> Encoder:
    """A ViT whose patch embedding is a ResNet with output stride 16 and a 1x1 projection.

    Args:
        name: timm name of the ViT.
        resnet: timm name of the ResNet.
        img_size: as in `Encoder`, but None means 384 for every ViT.
        arguments: further keyword arguments of `Encoder`.
    """
    from setr._timm import timm

    if "patch_size" in arguments:
        raise UsageError(
            f"encoder_args: a Hybrid has a ResNet in place of patches of {arguments['patch_size']} "
            "pixels; leave patch_size out"
        )
    channels = {"in_chans": arguments["in_chans"]} if "in_chans" in arguments else {}
    size = img_size or 384
    sides = (size, size) if isinstance(size, int) else size
    embed = partial(
        timm.layers.HybridEmbed,
        backbone=_create_resnet(resnet, (4,), HYBRID_STRIDE, **channels),
        feature_size=tuple(-(-side // HYBRID_STRIDE) for side in sides),
        feature_ratio=HYBRID_STRIDE,
    )
    return Encoder(name, img_size=size, embed_layer=embed, patch_size=1, **arguments)


def _create_resnet(name: str, taps: tuple[int, ...], output_stride: int, **timm_args: Any) -> Any:
    from setr._timm import timm

    if not timm.is_model(name) or not name.startswith("resnet"):
        near = ", ".join(timm.list_models("resnet*")[:3])
        raise UsageError(f"encoder '{name}' is not a timm ResNet; choose one, such as {near}")
    require_taps(taps, name, "stages", count=4)
    require_architecture(timm_args)
    try:
        return timm.create_model(
            name,
            pretrained=False,
            features_only=True,
            out_indices=taps,
            output_stride=output_stride,
            **timm_args,
        )
    except AssertionError:
        raise UsageError(f"output_stride {output_stride}: give 8, 16 or 32") from None
    except (TypeError, ValueError) as error:
        settings = ", ".join(f"{key} {value}" for key, value in timm_args.items())
        raise UsageError(
            f"encoder '{name}' cannot be built with {settings} ({first_line(error)}); correct them"
        ) from None
