"""Batch norm, ReLU and classifier in one: values, gradients and running figures of the layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from setr.layers import normalised as module
from setr.layers.normalised import norm_relu

CHANNELS = 67


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10 * CHANNELS)


def layers(dtype=torch.float64, K=5, bias=True):
    torch.manual_seed(0)
    norm, classifier = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, K, 1, bias=bias)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype), classifier.to(dtype)


@pytest.mark.parametrize(
    "how", ["classified", "without bias", "channels last", "transposed", "norm alone"]
)
def test_equals_the_layers(how):
    norm, classifier = layers(bias=how != "without bias")
    if how == "norm alone":
        classifier = None
    plain_norm, plain = copy.deepcopy(norm), copy.deepcopy(classifier)
    x = torch.randn(2, CHANNELS, 6, 7, dtype=torch.float64)
    if how == "channels last":
        x = x.to(memory_format=torch.channels_last)
    if how == "transposed":  # whose pixels are no single axis in memory
        x = x.mT
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert found.stride() == x.stride()
    out = norm_relu(found, norm, classifier)
    truth = torch.relu(plain_norm(wanted))
    truth = truth if plain is None else plain(truth)
    torch.testing.assert_close(out, truth)
    slope = torch.randn_like(truth)
    out.backward(slope)
    truth.backward(slope)
    torch.testing.assert_close(found.grad, wanted.grad)
    for own, its in ((norm, plain_norm), (classifier, plain)):
        for a, b in zip(
            own.parameters() if own else (), its.parameters() if its else (), strict=True
        ):
            torch.testing.assert_close(a.grad, b.grad)
    for name, figure in plain_norm.named_buffers():
        assert torch.equal(norm.get_buffer(name), figure), name


def test_a_single_pixel_is_refused_as_by_the_layer():
    norm, _ = layers()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_relu(torch.randn(1, CHANNELS, 1, 1, dtype=torch.float64), norm)
    assert norm.running_var.eq(1).all()
    assert norm_relu(torch.randn(1, CHANNELS, 1, 2, dtype=torch.float64), norm).isfinite().all()
    assert norm.running_var.isfinite().all()


def test_under_autocast_it_computes_as_the_layers_do():
    norm, classifier = layers(torch.float32)
    plain_norm, plain = copy.deepcopy(norm), copy.deepcopy(classifier)
    x = torch.randn(2, CHANNELS, 8, 8).bfloat16()
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out, truth = norm_relu(found, norm, classifier), plain(torch.relu(plain_norm(wanted)))
    assert out.dtype is truth.dtype is torch.bfloat16
    assert torch.equal(out, truth)
    slope = torch.randn_like(truth)
    out.backward(slope)
    truth.backward(slope)
    torch.testing.assert_close(found.grad, wanted.grad)
    assert classifier.weight.grad.dtype is torch.float32
    difference = classifier.weight.grad - plain.weight.grad  # sums of blocks are rounded
    assert difference.norm() < 5e-3 * plain.weight.grad.norm()


@pytest.mark.parametrize("training", [False, True])
def test_other_norms_stay_layers(training):
    norm = (nn.GroupNorm(1, CHANNELS) if training else nn.BatchNorm2d(CHANNELS)).train(training)
    x = torch.randn(2, CHANNELS, 4, 4)
    assert torch.equal(norm_relu(x, norm), torch.relu(norm(x)))


def test_keeps_the_map_before_the_norm_alone():
    norm, classifier = layers(torch.float32)
    x = torch.randn(1, CHANNELS, 32, 32, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_relu(x, norm, classifier)
    own = {p.untyped_storage().data_ptr() for p in (*norm.parameters(), *classifier.parameters())}
    assert sum(size for at, size in kept.items() if at not in own) == 4 * x.numel() + 8 * CHANNELS
