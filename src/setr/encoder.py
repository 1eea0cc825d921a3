"""A plain vision transformer as a segmentation encoder (paper section 3.2).

A thin wrapper around timm: the image becomes a sequence of patches, every block attends globally at
constant resolution, and the outputs of selected blocks ("taps") are returned as feature maps.
Unlike the pyramid of a convolutional backbone, all maps have the same size.

Shapes: B batch, H x W image, p patch size, C embedding width, h = ceil(H/p), w = ceil(W/p).
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr.arguments.choices import PosInterp, PrefixTokens, Readout
from setr.errors import USAGE, SetrError, first_line
from setr.layers.backbone import Backbone
from setr.layers.cpu_blocks import speed_up
from setr.layers.products import no_autocast
from setr.layers.readout import read_out, require_readout
from setr.layers.recompute import recompute_cheap

TOKENS = ("cls_token", "dist_token", "reg_token")
"""Prefix tokens of a timm ViT, in the order in which they precede the patch tokens."""


class Encoder(Backbone):
    """Any timm ViT, returning one feature map per tapped block.

    Args:
        name: timm model name, for example `vit_large_patch16_384` or `vit_small_patch14_dinov2`.
        taps: numbers of the blocks to return, ascending, counted from 1 as in the paper. Blocks
            after the last tap and the final norm are removed: they would never receive a gradient.
        img_size: image side or (height, width) in pixels for which position embeddings are created;
            None keeps the model's default. Images of other sizes work: the position embeddings are
            resampled at run time.
        pos_interp: how absolute position embeddings are resampled: `bicubic` (antialiased, as in
            timm), `bilinear` (as in the 2021 SETR code) or `bicubic_plain` (not antialiased, as in
            mmsegmentation's other ViTs).
        prefix_tokens: `keep` class, distillation and register tokens through the blocks, or `drop`
            them after the position embedding (as both public SETR-MLA implementations do).
        readout: what becomes of the class token behind each tapped block: `ignore` it, `add` it to
            every patch token, or `concat` it to every patch token along the channels (Ranftl et al.
            2021, section 3). Other prefix tokens are always ignored.
        patch_stride: pixels between neighbouring tokens; None for the patch size, as in the paper.
            With a smaller stride patches overlap: a finer map from the same weights (Amir et al.
            2021, section 3.1). The cost of attention grows with the fourth power of 1 / stride.
        norm_eps: epsilon of the blocks' layer norms; None keeps the model's own, usually 1e-6.
        prune_norm: remove the final norm; False only for encoders that apply it.
        timm_args: further keyword arguments of `timm.create_model`, for example `depth`,
            `drop_path_rate` or `in_chans` (number of image channels, 3 by default).

    Raises:
        SetrError: unknown model name, a model that does not support variable input sizes, or a
            readout of a class token that is not there.
    """

    stage_pattern = r"\bvit\.blocks\.(\d+)\."
    first_stage = 0

    def __init__(
        self,
        name: str,
        *,
        taps: tuple[int, ...],
        img_size: int | tuple[int, int] | None = None,
        pos_interp: PosInterp = "bicubic",
        prefix_tokens: PrefixTokens = "keep",
        patch_stride: int | None = None,
        norm_eps: float | None = None,
        readout: Readout = "ignore",
        prune_norm: bool = True,
        **timm_args: Any,
    ) -> None:
        super().__init__()
        self.vit = _create_vit(name, img_size=img_size, **timm_args)
        from setr.layers.rotary import make_on_device  # imports timm

        make_on_device(self.vit)
        if min(self.vit.patch_embed.grid_size) < 1:
            raise SetrError(
                f"img_size {img_size}: {name} has patches of {self.vit.patch_embed.patch_size[0]} "
                "pixels; give the side of an image in pixels, no smaller than a patch",
                code=USAGE,
            )
        depth = len(self.vit.blocks)
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] > depth:
            raise SetrError(
                f"taps {taps}: blocks are numbered 1 to {depth} in {name} and must ascend",
                code=USAGE,
            )
        self.taps = tuple(taps)
        self.vit.prune_intermediate_layers(
            [tap - 1 for tap in taps], prune_norm=prune_norm, prune_head=True
        )
        for block in self.vit.blocks:
            speed_up(block)
            recompute_cheap(block)
        if norm_eps is not None:
            for part in self.vit.blocks.modules():
                if isinstance(part, nn.LayerNorm):
                    part.eps = norm_eps
        if patch_stride is not None:
            _overlap_patches(self.vit, name, patch_stride)
        _embed_in_full_precision(self.vit.patch_embed)
        self.patch_size = self.vit.patch_embed.feat_ratio()
        self.in_chans = timm_args.get("in_chans", 3)
        self.channels: int = self.vit.embed_dim
        self.readout = readout
        self.widths = [self.channels * (2 if readout == "concat" else 1)] * len(taps)
        self.drop_prefix = prefix_tokens == "drop" and self.vit.num_prefix_tokens > 0
        require_readout(self.vit, name, readout, dropped=self.drop_prefix)
        self.pos_interp = pos_interp
        self.num_pos_prefix = num_pos_prefix(self.vit)
        if self.drop_prefix or pos_interp != "bicubic":
            _require_absolute_positions(self.vit, name)
            self.vit._pos_embed = self._pos_embed
            if self.drop_prefix:
                self.vit.num_prefix_tokens = 0

    def stages(self) -> list[nn.Module]:
        """The blocks up to the last tap."""
        return list(self.vit.blocks)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass to save memory; gradients stay the same."""
        self.vit.set_grad_checkpointing(enable)
        for block in self.vit.blocks:
            block.keeps_all = enable

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, in_chans, H, W), any H and W -> one (B, C, h, w) map per tap.

        Sides that are not multiples of the patch size are padded with zeros at the bottom or right.
        The maps are views of the blocks' tokens, in channels-last layout; with a readout, copies.
        For the readout `concat` they have 2C channels, the class token's last.
        """
        padded, (h, w) = self._padded(images)
        tokens: list[Any] = self.vit.forward_intermediates(
            padded,
            indices=[tap - 1 for tap in self.taps],
            intermediates_only=True,
            output_fmt="NLC",
            return_prefix_tokens=self.readout != "ignore",
        )
        if self.readout != "ignore":
            tokens = [read_out(patches, prefix[:, :1], self.readout) for patches, prefix in tokens]
        return [t.reshape(images.shape[0], h, w, -1).permute(0, 3, 1, 2) for t in tokens]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """What the first block receives.

        Returns:
            Tokens (B, N, C), prefix tokens first; the rotary embedding, if the ViT has one; and the
            patch grid (h, w).
        """
        padded, grid = self._padded(images)
        embedded = self.vit._pos_embed(self.vit.patch_embed(padded))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        return self.vit.norm_pre(tokens), rope, grid

    def _padded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images padded to whole patches, and the patch grid (h, w)."""
        H, W = images.shape[-2:]
        p = self.patch_size
        padded = F.pad(images, (0, -W % p, 0, -H % p)) if H % p or W % p else images
        return padded, (-(-H // p), -(-W // p))

    def _pos_embed(self, patches: Tensor) -> Tensor:
        """Replacement for timm's method with `pos_interp` and `prefix_tokens`.

        (B, h, w, C) -> (B, N, C).
        """
        vit = self.vit
        B, h, w, C = patches.shape
        prefix, grid = vit.pos_embed.split(
            [self.num_pos_prefix, vit.pos_embed.shape[1] - self.num_pos_prefix], dim=1
        )
        grid = resample_grid(grid, vit.patch_embed.grid_size, (h, w), mode=self.pos_interp)
        tokens = patches.reshape(B, h * w, C) + grid
        if not self.drop_prefix and self.num_pos_prefix:
            learned = torch.cat([getattr(vit, name) for name in prefix_names(vit)], dim=1)
            tokens = torch.cat([(learned + prefix).expand(B, -1, -1), tokens], dim=1)
        out: Tensor = vit.pos_drop(tokens)
        return out


def prefix_names(vit: Any) -> list[str]:
    """Names of a timm ViT's prefix tokens, in order."""
    return [name for name in TOKENS if getattr(vit, name, None) is not None]


def num_pos_prefix(vit: Any) -> int:
    """Number of a timm ViT's prefix tokens that have a position embedding."""
    if getattr(vit, "pos_embed", None) is None:
        return 0
    rows, cols = vit.patch_embed.grid_size
    return int(vit.pos_embed.shape[1] - rows * cols)


def resample_grid(
    embedding: Tensor, old: tuple[int, int], new: tuple[int, int], *, mode: PosInterp
) -> Tensor:
    """Resample position embeddings of a patch grid: (1, h*w, C) -> (1, h'*w', C).

    `bicubic` is antialiased and equals timm's `resample_abs_pos_embed`; `bilinear` is what the
    2021 SETR code and mmsegmentation's SETR do, `bicubic_plain` what its other ViTs do: not
    antialiased, and with another kernel (Keys' a is -0.75, not -0.5). `embedding` must not include
    prefix tokens.
    """
    if tuple(old) == tuple(new):
        return embedding
    maps = embedding.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    if maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()
    maps = F.interpolate(
        maps,
        size=new,
        mode=mode.removesuffix("_plain"),
        align_corners=False,
        antialias=mode == "bicubic",
    )
    return maps.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(embedding.dtype)


def reads_rgb_alone(weight: Tensor, own: Tensor) -> bool:
    """Whether a weight is the first convolution of an RGB model, and the model is not for RGB.

    Only first convolutions have three input channels.
    """
    same = weight.ndim == own.ndim == 4 and weight.shape[2:] == own.shape[2:]
    return same and len(weight) == len(own) and weight.shape[1] == 3 != own.shape[1]


def adapt_channels(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt an RGB model's first convolution (O, 3, h, w) to other channels, as timm does."""
    from setr._timm import timm

    adapted: Tensor = timm.models.adapt_input_conv(in_chans, weight)
    return adapted


def list_encoders(pattern: str = "*") -> list[str]:
    """Names of timm's plain vision transformers that match a shell pattern."""
    from setr._timm import timm

    return [
        name
        for name in timm.list_models(pattern)
        if re.match(r"(vit|deit|deit3|eva02|eva|flexivit|beit|beitv2|beit3|aimv2)_", name)
        and not re.search(r"relpos|srelpos|_rope|naflex|_r26_|_r50_|_resnet|hybrid", name)
    ]


def has_class_token(name: str) -> bool:
    """Whether a timm ViT has a class token, without allocating its weights."""
    with torch.device("meta"):
        return getattr(_create_vit(name, img_size=None), "cls_token", None) is not None


def encoder_depth(name: str) -> int:
    """Number of blocks of a timm ViT, without allocating its weights."""
    with torch.device("meta"):
        return len(_create_vit(name, img_size=None).blocks)


def _create_vit(name: str, *, img_size: int | tuple[int, int] | None, **timm_args: Any) -> Any:
    from setr._timm import timm
    from setr.layers.relative_bias import is_relative, make_variable

    if not timm.is_model(name):
        bare = re.split("[/:]", name)[-1].split(".")[0]  # without Hub owner and tag
        near = timm.list_models(f"*{bare}*")[:3]
        near = near or difflib.get_close_matches(bare, timm.list_models(), 3)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise SetrError(
            f"encoder '{name}' is not a timm model{nearest} (`setr models --encoders` lists all)",
            code=USAGE,
        )
    size = {} if img_size is None else {"img_size": img_size}
    given = [f"{key} {value}" for key, value in {**size, **timm_args}.items()]
    heads = timm_args.get("num_heads", 1)
    relative = is_relative(name)
    try:
        if not isinstance(heads, int) or heads < 1:  # timm checks only that they divide the width
            raise ValueError("num_heads must be a whole number from 1")
        vit = timm.create_model(
            name,
            pretrained=False,
            num_classes=0,
            **({} if relative else {"dynamic_img_size": True, "dynamic_img_pad": True}),
            **size,
            **timm_args,
        )
    except SetrError:
        raise
    except (TypeError, AssertionError, ValueError, ArithmeticError, LookupError) as error:
        if isinstance(error, TypeError) and ("dynamic_img" in str(error) or not given):
            raise SetrError(
                f"encoder '{name}' cannot be used: it is not a plain ViT with variable input size "
                f"({error}); choose a vit_*, deit*, beit*, eva02_* or *_dinov2/_dinov3 model",
                code=USAGE,
            ) from None
        raise SetrError(
            f"encoder '{name}' cannot be built with {', '.join(given) or 'its own settings'} "
            f"({first_line(error)}); correct them",
            code=USAGE,
        ) from None
    if getattr(vit, "attn_pool", None) is not None:
        vit.attn_pool = None  # SigLIP's pooling head is not used and would get no gradient
    if relative:
        make_variable(vit)
    return vit


class _FullPrecisionConv2d(nn.Conv2d):
    """A convolution in the dtype of its weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with no_autocast(x.device):
            # integers are not converted: they are unnormalised pixels, which should raise an error
            return super().forward(x.to(self.weight.dtype) if x.is_floating_point() else x)


def _embed_in_full_precision(embed: Any) -> None:
    """Exclude the patch embedding of a timm ViT from autocast, except a hybrid's, a whole ResNet.

    It has a hundredth of the operations. In bf16, which rounds the image itself, it caused a
    quarter of the pixels whose class differed from fp32's (docs/decisions.md).
    """
    if not hasattr(embed, "backbone"):
        embed.proj.__class__ = _FullPrecisionConv2d


def _overlap_patches(vit: Any, name: str, stride: int) -> None:
    """Place a timm ViT's patches `stride` pixels apart, each centred on its cell of that grid.

    Position embeddings keep their grid and are resampled at run time.
    """
    embed = vit.patch_embed
    size = embed.proj.kernel_size[0]
    if hasattr(embed, "backbone"):
        raise SetrError(
            f"patch_stride {stride}: {name} has a ResNet in place of patches", code=USAGE
        )
    if not isinstance(stride, int) or not 0 < stride <= size or (size - stride) % 2:
        raise SetrError(
            f"patch_stride {stride}: {name} has patches of {size} px; give "
            f"{', '.join(str(s) for s in range(size, 0, -2) if s >= size / 2)} or another "
            "stride smaller than the patch by an even number, so that patches stay centred",
            code=USAGE,
        )
    embed.proj.stride = (stride, stride)
    embed.proj.padding = ((size - stride) // 2,) * 2
    embed.patch_size = (stride, stride)  # timm computes padding and the grid from it


def _require_absolute_positions(vit: Any, name: str) -> None:
    rotary = getattr(vit, "rope", None) is not None
    if rotary or getattr(vit, "pos_embed", None) is None or getattr(vit, "no_embed_class", False):
        raise SetrError(
            f"encoder '{name}': pos_interp and prefix_tokens need an absolute position embedding "
            "that covers the prefix tokens; leave both at their defaults",
            code=USAGE,
        )
