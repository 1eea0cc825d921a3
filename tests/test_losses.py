"""The fused loss equals interpolate + cross_entropy, in value and gradient."""

from __future__ import annotations

import importlib.util
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from setr import losses
from setr.errors import SetrError
from setr.inference import normalize
from setr.kernels import row_blocks
from setr.labels import IGNORE
from setr.layers.upsampling import upsample
from setr.losses import count_weight, segmentation_loss, upsample_cross_entropy
from setr.model import Output
from tests.conftest import tiny_model


def plain(logits, target, size, weight=None, scale=1):
    logits = upsample(logits, scale)
    wide = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    H, W = target.shape[-2:]
    return F.cross_entropy(
        wide[..., :H, :W], target.long(), weight=weight, ignore_index=IGNORE, reduction="sum"
    )


def value_and_grad(function, logits, *arguments, **keywords):
    logits = logits.detach().clone().requires_grad_()
    total = function(logits, *arguments, **keywords)
    total.backward()
    return total.detach(), logits.grad


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 6),
    st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(), st.sampled_from([1, 2, 4]), st.integers(0, 10_000),
)  # fmt: skip
def test_equals_interpolate_then_cross_entropy(
    B, K, h, w, extra_h, extra_w, ignored, weighted, scale, seed
):
    generator = torch.Generator().manual_seed(seed)
    size = (h + extra_h, w + extra_w)
    H, W = max(1, size[0] - seed % 3), max(1, size[1] - seed % 2)
    logits = torch.randn(B, K, h, w, generator=generator, dtype=torch.float64)
    target = torch.randint(K, (B, H, W), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE
    weight = torch.rand(K, generator=generator, dtype=torch.float64) if weighted else None
    keywords = {"weight": weight, "scale": scale}
    ours = value_and_grad(upsample_cross_entropy, logits, target, size, **keywords)
    theirs = value_and_grad(plain, logits, target, size, **keywords)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_block_boundaries_do_not_matter(monkeypatch):
    logits = torch.randn(2, 4, 7, 5)
    target = torch.randint(4, (2, 56, 40))
    whole = value_and_grad(plain, logits, target, (56, 40))
    for block in (1, 4 * 40 * 4 * 2 * 5, 10**9):  # one row, five rows, everything
        monkeypatch.setattr(row_blocks, "BLOCK_BYTES", block)
        ours = value_and_grad(upsample_cross_entropy, logits, target, (56, 40))
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)


def test_all_ignored_gives_zero_loss_and_zero_gradient():
    logits = torch.randn(1, 3, 4, 4)
    target = torch.full((1, 16, 16), IGNORE)
    total, grad = value_and_grad(upsample_cross_entropy, logits, target, (16, 16))
    assert total == 0
    assert (grad == 0).all()
    output = Output(logits.requires_grad_(), [], (16, 16))
    loss = segmentation_loss(output, target, normalizer=count_weight(target))["loss"]
    loss.backward()
    assert loss == 0
    assert (output.logits.grad == 0).all()


def test_a_hopeless_class_has_a_finite_loss():
    """Its probability in fp32 is 0, whose logarithm is not finite."""
    logits = torch.tensor([0.0, -80.0, -150.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    target = torch.tensor([[[0, 1], [2, IGNORE]]])
    total, grad = value_and_grad(upsample_cross_entropy, logits, target, (2, 2))
    assert total == pytest.approx(230)
    assert torch.isfinite(grad).all()


def test_bf16_logits_get_an_fp32_loss_and_a_bf16_gradient():
    logits = torch.randn(1, 3, 4, 4, dtype=torch.bfloat16)
    target = torch.randint(3, (1, 16, 16))
    total, grad = value_and_grad(upsample_cross_entropy, logits, target, (16, 16))
    expected, _ = value_and_grad(plain, logits.float(), target, (16, 16))
    assert total.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    assert total == pytest.approx(expected.item(), rel=1e-6)


def test_main_and_auxiliary_losses_by_hand():
    target = torch.tensor([[[0, 1], [1, IGNORE]]])
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)  # every pixel: log 2
    output = Output(logits, [logits, logits], (2, 2))
    parts = segmentation_loss(output, target, normalizer=count_weight(target), aux_weight=0.4)
    log2 = torch.log(torch.tensor(2.0)).item()
    assert parts["main"].item() == pytest.approx(log2)
    assert parts["loss"].item() == pytest.approx(log2 * (1 + 2 * 0.4))
    weight = torch.tensor([1.0, 3.0])
    assert count_weight(target, weight) == 7


def test_plain_logits_of_any_model_are_resized_to_the_target():
    logits = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    target = torch.arange(2 * 20 * 28).reshape(2, 20, 28) % 3
    target[0, 0] = IGNORE
    resized = F.interpolate(logits, (20, 28), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(resized, target, ignore_index=IGNORE)
    found = segmentation_loss(logits, target)
    assert sorted(found) == ["loss", "main"]
    torch.testing.assert_close(found["loss"], expected)


@pytest.mark.parametrize("kind", ["cross_entropy", "dice"])
def test_second_derivatives_are_refused_and_not_wrong(kind):
    """The gradient is computed in the forward pass; to `create_graph` it looks like a constant."""
    scale = torch.ones(1, 3, 1, 1, requires_grad=True)
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * scale**2
    loss = segmentation_loss(logits, torch.zeros(2, 8, 9, dtype=torch.long), kind=kind)["loss"]
    with pytest.raises(SetrError, match="has no second derivative"):
        torch.autograd.grad(loss, scale, create_graph=True)


def test_what_would_be_counted_wrongly_is_refused():
    output = Output(torch.zeros(2, 3, 4, 5), [], (64, 80))
    target = torch.zeros(2, 57, 80, dtype=torch.long)
    assert segmentation_loss(output, target, weight=torch.ones(3))["loss"] > 0
    halved, doubled = target[:, :29, :40], target.repeat(1, 2, 2)
    for wrong in (target[:1], target[0], target[:, None], halved, doubled):
        with pytest.raises(SetrError, match=r"give ids \(B, H, W\) of the 2 images"):
            segmentation_loss(output, wrong)
    with pytest.raises(SetrError, match="give ids"):
        segmentation_loss(output.logits, target[:1])
    with pytest.raises(SetrError, match="one for each of 3 classes"):
        segmentation_loss(output, target, weight=torch.ones(4))
    with pytest.raises(SetrError, match="weight list: give one for each of 3 classes"):
        segmentation_loss(output, target, weight=[1, 1, 1])
    with pytest.raises(SetrError, match="output tuple: give what model"):
        segmentation_loss((output.logits,), target)
    for number in (3, -1):
        with pytest.raises(SetrError, match=rf"id {number}: the output has 3 classes; give 0 to 2"):
            segmentation_loss(output, target.index_fill(0, torch.tensor(1), number))
    with pytest.raises(SetrError, match="kind 'dise': give cross_entropy, ohem, focal, dice"):
        segmentation_loss(output, target, kind="dise")


@pytest.mark.parametrize("target", [torch.zeros(2, 8, 8), np.zeros((2, 8, 8), np.uint8)])
def test_a_target_of_another_type_is_refused(target):
    with pytest.raises(SetrError, match="give a tensor of ids, of an integer type"):
        segmentation_loss(torch.randn(2, 3, 4, 4), target)


def test_masks_smaller_than_the_images_are_refused():
    """Even by less than the padding to whole patches, which is not counted."""
    output = tiny_model("pup")(torch.zeros(2, 3, 57, 80), with_aux=True)
    target = torch.zeros(2, 64, 80, dtype=torch.long)
    assert segmentation_loss(output, target[:, :57])["loss"] > 0
    for wrong in (target, target[:, :56], target[:, :58], target[:, :57, :79]):
        with pytest.raises(SetrError, match=r"at their size \(57x80\)"):
            segmentation_loss(output, wrong)


def test_no_step_on_a_gpu_waits_for_it():
    """On the meta device: which pixels a mask chooses is not asked, and no copy is waited for."""
    blocking = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            keywords = keywords or {}
            if "device" in keywords and function._schema.name == "aten::_to_copy":
                blocking.append(not keywords.get("non_blocking"))
            return function(*arguments, **keywords)

    target = torch.empty(2, 8, 8, dtype=torch.uint8, device="meta")
    images = torch.empty(2, 8, 8, 3, dtype=torch.uint8, device="meta")
    weight = torch.empty(4, device="meta")
    with Watch():
        total = count_weight(target, weight)  # a choice by mask has no size there
        x = normalize(images, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert total.device.type == x.device.type == "meta"
    assert blocking == [False, False]


class _NoCompiler:
    @property
    def active(self):
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nor a knob")


@pytest.mark.parametrize(("driver", "works"), [(Mock(), True), (_NoCompiler(), False)])
def test_without_a_compiler_for_triton_the_loss_takes_the_other_road(
    monkeypatch, capsys, driver, works
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, "triton", Mock())
    monkeypatch.setitem(sys.modules, "triton.runtime", Mock(driver=driver))
    assert losses._has_triton.__wrapped__() is works
    said = capsys.readouterr().err
    assert said.count("\n") == (not works)
    assert works or "(Failed to find C compiler. Please specify via CC); a slower loss" in said
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    assert not losses._has_triton.__wrapped__()  # older than Triton's


def test_memory_does_not_hold_full_resolution_logits():
    """The largest tensor the loss makes is a block, not K x H x W."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                seen.append(result.numel() * result.element_size())
            return result

    logits = torch.randn(1, 50, 32, 32, requires_grad=True)
    target = torch.randint(50, (1, 512, 512))
    with Watch():
        upsample_cross_entropy(logits, target, (512, 512)).backward()
    assert max(seen) <= row_blocks.BLOCK_BYTES + target.numel() * 8
    assert max(seen) < 50 * 512 * 512 * 4 / 4


def test_the_default_loss_does_not_count_its_pixels(monkeypatch):
    """The caller gave the divisor; with class weights on a GPU, counting waits for the device."""
    monkeypatch.setattr(losses, "count_weight", None)
    target = torch.tensor([[[0, 1], [1, IGNORE]]])
    output = Output(torch.zeros(1, 2, 2, 2), [], (2, 2))
    weight = torch.tensor([1.0, 3.0])
    parts = segmentation_loss(output, target, normalizer=torch.tensor(7.0), weight=weight)
    assert parts["loss"].item() == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("scale", [1, 2])
def test_blocks_read_nothing_back_from_the_device(scale):
    """Meta tensors have no values to wait for."""
    logits = torch.empty(2, 4, 7, 5, device="meta", requires_grad=True)
    target = torch.empty(2, 56, 40, dtype=torch.long, device="meta")

    def total(wide, truth, block):
        return wide.sum(), torch.ones_like(wide)

    row_blocks.upsample_sum(logits, target, (56, 40), total, scale=scale).backward()
    assert logits.grad.shape == logits.shape
