"""UPerNet: neck and head against plain operations, and its published layout."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import setr
from setr.errors import USAGE, SetrError
from setr.layers import joined_convolution
from setr.layers.joined_convolution import JoinedConv, average_grid, halve
from setr.layers.upernet import UPerHead, UPerNeck
from setr.layers.upsampled_convolution import conv_of_resized

WIDTH, CLASSES = 64, 5
Weights = dict[str, Tensor]


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, and far from what models start as, so that no tensor may go missing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=draw) / max(1, value[0].numel()) ** 0.5)
                if name.endswith("running_var"):
                    value.abs_().add_(0.5)
    return model.eval()


def conv(x: Tensor, p: Weights, name: str) -> Tensor:
    weight = p[f"{name}.weight"]
    return F.conv2d(x, weight, p.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def conv_bn_relu(x: Tensor, p: Weights, name: str) -> Tensor:
    norm = [p[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(conv(x, p, f"{name}.0"), *norm).relu()


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def neck_and_head(features: list[Tensor], p: Weights, *, pyramid: bool, ln: bool) -> Tensor:
    """mmsegmentation's MultiLevelNeck and UPerHead, written out: logits, and the last map."""
    *earlier, last = features
    if ln:
        scale, shift = p["neck.norm.weight"], p["neck.norm.bias"]
        last = F.layer_norm(last.permute(0, 2, 3, 1), scale.shape, scale, shift, 1e-6)
        last = last.permute(0, 3, 1, 2)
    maps = [*earlier, last]
    if pyramid:
        names = ["neck.levels.0", "neck.levels.1", "neck.levels.2", "neck.last"]
        maps = [conv(x, p, f"{name}.project") for x, name in zip(maps, names, strict=True)]
        maps = [
            F.interpolate(x, scale_factor=s, mode="bilinear") if s != 1 else x
            for x, s in zip(maps, (4, 2, 1, 0.5), strict=True)
        ]
        maps = [conv(x, p, f"{name}.conv") for x, name in zip(maps, names, strict=True)]
    last = maps[-1]
    pooled = [
        conv_bn_relu(F.adaptive_avg_pool2d(last, side), p, f"decoder.pools.{i}.conv")
        for i, side in enumerate((1, 2, 3, 6))
    ]
    joined = torch.cat([last, *(resized(x, last) for x in pooled)], dim=1)
    x = conv_bn_relu(joined, p, "decoder.context")
    outs = [x]
    for i in (2, 1, 0):
        x = conv_bn_relu(maps[i], p, f"neck.levels.{i}.lateral") + resized(x, maps[i])
        outs.insert(0, conv_bn_relu(x, p, f"decoder.smooth.{i}"))
    joined = torch.cat([resized(x, outs[0]) for x in outs], dim=1)
    return conv(conv_bn_relu(joined, p, "decoder.join"), p, "decoder.classifier"), last


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (3, 2)])
@pytest.mark.parametrize("kind", ["ln_mln", "mln", "none"])
@pytest.mark.parametrize("mode", ["eager", "layers", "traced"])
def test_neck_and_head_are_mmsegmentations(size, kind, mode, monkeypatch):
    pyramid, ln = kind != "none", kind == "ln_mln"
    neck = UPerNeck([12] * 4, channels=8, inner=10, pyramid=pyramid, norm_last=ln)
    head = UPerHead(neck.widths[-1], CLASSES, channels=8, pyramid=pyramid)
    model = randomised(nn.ModuleDict({"neck": neck, "decoder": head})).double()
    features = [torch.randn(2, 12, *size, dtype=torch.double) for _ in range(4)]
    expected, last = neck_and_head(features, model.state_dict(), pyramid=pyramid, ln=ln)
    if mode == "traced":  # the form for GPUs and graphs
        for module in (joined_convolution, setr.layers.upernet):
            monkeypatch.setattr(module, "is_traced", lambda: True)
    with torch.set_grad_enabled(mode == "layers"):
        maps = neck(features)
        torch.testing.assert_close(head(maps), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(maps[-1], last, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("size", [(2, 2), (8, 12), (7, 9), (16, 24)])
def test_joined_convolution_is_that_of_the_concatenation(size):
    joined = randomised(JoinedConv([3, 5, 2], 4)).double()
    maps = [torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6), torch.randn(2, 2, *size)]
    maps = [x.double().requires_grad_() for x in maps]
    plain = joined(torch.cat([resized(x, maps[0]) for x in maps], dim=1))
    ours = joined.joined(maps)
    torch.testing.assert_close(ours, plain)
    wanted = torch.randn_like(plain)
    inputs = [*maps, *joined.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, wanted), torch.autograd.grad(plain, inputs, wanted),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 3), (64, 43)])
def test_averages_are_those_of_adaptive_pooling(size):
    x = torch.randn(2, 3, *size)
    for side in (1, 2, 3, 6):
        torch.testing.assert_close(average_grid(x, side), F.adaptive_avg_pool2d(x, side))
    if min(size) > 1:
        torch.testing.assert_close(halve(x), F.interpolate(x, scale_factor=0.5, mode="bilinear"))
    else:
        assert halve(x).shape == (2, 3, 1, 1)


def test_taps_of_any_resize():
    x, weight = torch.randn(1, 3, 5, 4).double(), torch.randn(2, 3, 3, 3).double()
    for size in ((5, 4), (11, 7), (2, 9), (20, 16)):
        plain = F.conv2d(F.interpolate(x, size, mode="bilinear"), weight, padding=1)
        torch.testing.assert_close(conv_of_resized(x, weight, size), plain)


@pytest.mark.parametrize("neck", ["ln_mln", "mln", "none"])
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (5, 9)])
def test_every_parameter_gets_a_gradient_and_any_size_logits(neck, size):
    model = setr.create_model("upernet_nano", num_classes=CLASSES, img_size=32, neck=neck)
    output = model(torch.randn(3, 3, *size), with_aux=True)
    assert len(output.aux) == 1
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, CLASSES, *size)
    masks = torch.randint(0, CLASSES, (3, *size), dtype=torch.uint8)
    setr.segmentation_loss(output, masks)["loss"].backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_a_batch_of_one_trains_and_keeps_statistics_finite():
    model = setr.create_model("upernet_nano", num_classes=CLASSES, img_size=32)
    output = model(torch.randn(1, 3, 64, 64), with_aux=True)
    output.logits.sum().backward()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert all(p.grad.isfinite().all() for p in model.decoder.parameters())


def test_refusals():
    with pytest.raises(SetrError, match=r"3 taps, but its neck makes 4 levels; give 4") as raised:
        setr.create_model("upernet_nano", num_classes=3, img_size=32, taps=(2, 4, 6))
    assert raised.value.code == USAGE
    with pytest.raises(SetrError, match="neck mln: setr_pup_nano has no such neck"):
        setr.create_model("setr_pup_nano", num_classes=3, neck="mln")
