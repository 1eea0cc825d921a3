"""One tester for all decoders, and the algebra they rely on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from setr.baselines import FCN, FPNNeck, SemanticFPN
from setr.decoders import (
    MLA,
    PUP,
    ChannelNorm,
    ConvBNReLU,
    MLANeck,
    Naive,
    PointwiseHead,
    UpsampleHead,
)
from setr.errors import SetrError
from setr.layers import conv_bn_relu
from setr.layers.upsampled_convolution import classify_upsampled, conv_of_upsampled
from setr.layers.upsampling import _Resize, upsample, upsample_by_matrices
from tests.conftest import tiny_model

C, K = 24, 5

DECODERS = {
    "naive": (lambda: Naive(C, K, channels=16), 1),
    "naive of the port": (lambda: Naive(C, K, channels=16, final_scale=4), 4),
    "pup": (lambda: PUP(C, K, channels=16), 8),
    "pup of the port": (lambda: PUP(C, K, channels=16, final_scale=2), 16),
    "mla": (lambda: MLA(C, K, stream_channels=8), 4),
    "mla of the port": (
        lambda: MLA(C, K, stream_channels=8, classifier_kernel=1, align_corners=False),
        4,
    ),
    "auxiliary": (lambda: UpsampleHead(C, K, num_convs=2, scale=4, final_scale=4, channels=16), 16),
    "auxiliary of mla": (lambda: PointwiseHead(C, K), 1),
    "fcn": (lambda: FCN(C, K, channels=16), 1),
    "fcn auxiliary": (lambda: FCN(C, K, channels=16, num_convs=1, concat_input=False), 1),
}


def maps(h: int = 5, w: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, C, h, w, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("name", DECODERS)
def test_scale_shape_and_gradients(name):
    torch.manual_seed(0)
    build, scale = DECODERS[name]
    decoder = build()
    logits = decoder(maps())
    assert logits.shape == (2, K, 5 * scale, 7 * scale)
    logits.square().mean().backward()
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, parameter_name


@pytest.mark.parametrize("name", DECODERS)
def test_state_loads_into_a_second_instance(name):
    build, _ = DECODERS[name]
    first, second = build().eval(), build().eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(maps()), second(maps()))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("align_corners", [False, True])
def test_classifying_commutes_with_upsampling(scale, align_corners):
    """Bilinear weights sum to one and a 1x1 convolution is linear per pixel."""
    torch.manual_seed(0)
    classifier, x = nn.Conv2d(C, K, 1).double(), maps()[0].double()
    before = upsample(classifier(x), scale, align_corners=align_corners)
    after = classifier(upsample(x, scale, align_corners=align_corners))
    torch.testing.assert_close(before, after)


def test_pup_is_figure_1b():
    """conv, x2, conv, x2, conv, x2, conv, x2, then the classifier at full size."""
    torch.manual_seed(0)
    decoder = PUP(C, K, channels=16).double().eval()
    x = decoder.norm(maps()[-1].double())
    for conv in decoder.convs:
        x = F.interpolate(conv(x), scale_factor=2, mode="bilinear", align_corners=False)
    expected = decoder.classifier(x)
    logits = decoder([m.double() for m in maps()])
    ours = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, expected)


def test_four_times_four_is_not_sixteen():
    """Why the port's Naive head is another function: final_scale is an option, not a detail."""
    x = maps()[0]
    twice = upsample(upsample(x, 4), 4)
    assert (twice - upsample(x, 16)).abs().max() > 0.01


def test_mla_neck_sums_from_the_deepest():
    torch.manual_seed(0)
    neck = MLANeck([C] * 4, channels=8).eval()
    features = maps()
    base = neck(features)
    for changed in range(4):
        other = [f + 1.0 * torch.randn_like(f) if i == changed else f
                 for i, f in enumerate(features)]  # fmt: skip
        moved = [not torch.equal(a, b) for a, b in zip(base, neck(other), strict=True)]
        assert moved == [i <= changed for i in range(4)]


def test_channel_norm_is_layer_norm_of_tokens():
    x = maps()[0]
    norm = ChannelNorm(C)
    tokens = F.layer_norm(x.flatten(2).transpose(1, 2), (C,), norm.weight, norm.bias, eps=1e-6)
    torch.testing.assert_close(norm(x).flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (8, 16)])
def test_semantic_fpn_joins_four_resolutions(h, w):
    torch.manual_seed(0)
    features = [torch.randn(2, 8 * (i + 1), h >> i, w >> i) for i in range(4)]
    neck, decoder = FPNNeck([8, 16, 24, 32], channels=12), SemanticFPN(12, K, channels=8)
    logits = decoder(neck(features))
    assert logits.shape == (2, K, h, w)
    logits.square().mean().backward()
    parameters = [*neck.parameters(), *decoder.parameters()]
    assert all(p.grad is not None for p in parameters)
    assert [len(level) for level in decoder.levels] == [1, 1, 2, 3]


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_norm_is_the_same_function(bias):
    torch.manual_seed(0)
    layer = ConvBNReLU(3, 4, 3, bias=bias).double()
    norm = layer[1]
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    layer.eval()
    plain = layer(x)
    assert plain.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain, rtol=1e-12, atol=1e-12)
        layer.train()
        before = norm.running_mean.clone()
        layer(x)
        assert (norm.running_mean != before).all()  # batch statistics, as training needs them


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(("h", "scale"), [(1, 2), (9, 2), (40, 2), (20, 4)])
@pytest.mark.parametrize("small", [0, conv_bn_relu.SMALL])
def test_bands_of_rows_equal_the_whole(kernel_size, h, scale, small, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(conv_bn_relu, "SMALL", small)
    layer = ConvBNReLU(3, 4, kernel_size, bias=True).double().eval()
    classifier = torch.nn.Conv2d(4, 2, 1).double()
    x = torch.randn(2, 3, h, 5, dtype=torch.float64)
    with torch.no_grad():
        whole = classifier(layer(upsample(x, scale)))
        banded = layer.upsampled(x, scale, classifier=classifier)
        torch.testing.assert_close(banded, whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.upsampled(x, scale), layer(upsample(x, scale)))
        layer[0], layer[1] = fuse_conv_bn_eval(layer[0], layer[1]), torch.nn.Identity()
        layer.in_graph = True
        with torch.enable_grad():  # as it is traced
            graph = layer.upsampled(x, scale, classifier=classifier).detach()
        torch.testing.assert_close(graph, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_convolving_commutes_with_upsampling(kernel_size, scale, h, w, bias):
    """Values and gradients of the cheap forms, borders included."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, kernel_size, padding=kernel_size // 2, bias=bias).double()
    x = torch.randn(2, 3, h, w, dtype=torch.float64, requires_grad=True)
    inputs = [x, *conv.parameters()]

    def with_gradients(y):
        return y, *torch.autograd.grad((y.sin() * 3).sum(), inputs)

    plain = with_gradients(conv(upsample(x, scale)))
    torch.testing.assert_close(with_gradients(conv_of_upsampled(x, conv, scale)), plain)
    for align_corners in (False, True):
        plain = with_gradients(conv(upsample(x, scale, align_corners=align_corners)))
        cheap = classify_upsampled(x, conv, scale, align_corners=align_corners)
        torch.testing.assert_close(with_gradients(cheap), plain)


@pytest.mark.parametrize("scale", [2, 4, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling_by_matrices_is_upsampling(scale, layout):
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64).contiguous(memory_format=layout)
    ours, expected = (x.clone(memory_format=layout).requires_grad_() for _ in range(2))
    found, wanted = upsample_by_matrices(ours, scale), upsample(expected, scale)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)  # as convolutions like it
    slope = torch.randn_like(wanted)
    found.backward(slope)
    wanted.backward(slope)
    torch.testing.assert_close(ours.grad, expected.grad)
    half = upsample_by_matrices(x.bfloat16(), scale)
    assert half.dtype is torch.bfloat16
    assert (half.double() - wanted).norm() < 0.004 * wanted.norm()


@pytest.mark.parametrize("size", [(12, 14), (9, 11), (4, 3), (6, 7), (1, 20)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_gradient_of_a_resize_is_two_products(size, align_corners):
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    found = _Resize.apply(x, size, align_corners)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
    assert torch.equal(found, expected)
    slope = torch.randn_like(found)
    grads = [torch.autograd.grad(y, x, slope)[0] for y in (found, expected)]
    torch.testing.assert_close(*grads)
    half = x.detach().bfloat16().requires_grad_()
    _Resize.apply(half, size, align_corners).backward(slope.bfloat16())
    assert half.grad.dtype is torch.bfloat16
    assert (half.grad - grads[1]).norm() < 0.004 * grads[1].norm()


def test_the_cheap_forms_round_about_as_much_in_bf16():
    """Distance from fp64, beside that of the plain order under the same autocast.

    The cheap forms round once more, between convolution and filter, so a bit (a factor 2) is what
    they may lose; it is 1.3 where the processor has bf16, and 1.5 where it is emulated.
    """
    torch.manual_seed(0)
    conv, x = nn.Conv2d(32, 16, 3, padding=1), torch.randn(2, 32, 12, 12)
    for cheap in (conv_of_upsampled, classify_upsampled):
        with torch.autocast("cpu", torch.bfloat16):
            ours, plain = cheap(x, conv, 2), conv(upsample(x, 2))
        exact = F.conv2d(
            upsample(x.double(), 2), conv.weight.double(), conv.bias.double(), padding=1
        )
        assert (ours - exact).norm() < 2 * (plain - exact).norm()


@pytest.mark.parametrize("name", ["pup", "auxiliary"])
def test_training_is_the_plain_sequence_of_layers(name):
    """Outputs, gradients and running statistics in training mode."""
    torch.manual_seed(0)
    build, _ = DECODERS[name]
    ours = build().double()
    theirs = build().double()
    theirs.load_state_dict(ours.state_dict())
    x = maps()[-1].double()
    y = theirs.norm(x)
    for i, conv in enumerate(theirs.convs):
        y = nn.Sequential.forward(conv, y if i == 0 else upsample(y, theirs.scale))
    y = upsample(theirs.classifier(y), theirs.final_scale)
    logits = ours([x])
    torch.testing.assert_close(logits, y)
    for result in (logits, y):
        result.square().mean().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_the_taps_of_a_classifier_are_added_in_fp32_whatever_the_precision():
    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if "matmul" in getattr(func, "__name__", ""):
                found.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    found = []
    x, conv = maps()[0], nn.Conv2d(C, K, 3, padding=1)
    torch.set_float32_matmul_precision("medium")
    try:
        with Watch():
            classify_upsampled(x, conv, 4)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found == ["highest", "highest"]


def test_mla_refuses_a_classifier_it_cannot_compute():
    with pytest.raises(SetrError, match="classifier_kernel 5: give 3 or 1"):
        MLA(C, K, classifier_kernel=5)


@pytest.mark.parametrize(
    ("place", "key", "value", "words"),
    [
        ("decoder_args", "final_scale", 0, "final_scale 0: give a whole number from 1 to 32"),
        ("decoder_args", "final_scale", "2", "final_scale '2': give a whole number"),
        ("decoder_args", "final_scale", 90_000, "final_scale 90000"),
        ("decoder_args", "num_convs", 0, "num_convs 0: give at least 1"),
        ("aux_args", "final_scale", -1, "final_scale -1"),
    ],
)
def test_heads_that_could_not_run_are_not_built(place, key, value, words):
    with pytest.raises(SetrError, match=words):
        tiny_model("pup", **{place: {"channels": 16, key: value}})
