"""The fused losses equal F.interpolate and F.cross_entropy, on every road that computes them.

The kernels run on CUDA where there is one, else in Triton's interpreter on the CPU (`conftest.py`
asks for it); without Triton their cases are skipped.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from setr.labels import IGNORE
from setr.layers.upsampling import upsample
from setr.losses import upsample_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def kernels():
    """The Triton form of the loss, or a skip."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (pip install triton)")
    import triton

    from setr.kernels import triton_loss

    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    if DEVICE == "cpu" and old and np.lib.NumpyVersion(np.__version__) >= "2.5.0":
        pytest.skip("the interpreter of Triton before 3.7 fails with NumPy from 2.5 on")
    return triton_loss.upsample_cross_entropy


ROADS = {"blocks": lambda: (upsample_cross_entropy, "cpu"), "triton": lambda: (kernels(), DEVICE)}


@st.composite
def cases(draw):
    """Logits, target, size and keywords: any sizes and factors, one pixel, nothing counted."""
    B, K, h, w = (draw(st.integers(1, n)) for n in (2, 7, 5, 6))
    size = draw(
        st.one_of(
            st.tuples(st.integers(1, 24), st.integers(1, 24)),  # any factor, also below 1
            st.sampled_from([1, 2, 3, 4, 8]).map(lambda s: (s * h, s * w)),
        )
    )
    cut = draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    H, W = max(1, size[0] - cut), max(1, size[1] - cut)
    target = torch.randint(K, (B, H, W), generator=generator)
    ignored = draw(st.sampled_from([0.0, 0.3, 1.0]))
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE
    spread = draw(st.sampled_from([1.0, 30.0]))
    logits = spread * torch.randn(B, K, h, w, generator=generator)
    weight = torch.rand(K, generator=generator) if draw(st.booleans()) else None
    return logits, target, size, weight


def plain(logits, target, size, weight):
    """Sum and gradient, in fp64."""
    x = logits.detach().double().requires_grad_()
    wide = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    H, W = target.shape[-2:]
    total = F.cross_entropy(
        wide[..., :H, :W],
        target.long(),
        weight=None if weight is None else weight.double(),
        ignore_index=IGNORE,
        reduction="sum",
    )
    total.backward()
    return total.detach(), x.grad


def fused(function, device, logits, target, size, weight):
    x = logits.detach().clone().to(device).requires_grad_()
    weight = None if weight is None else weight.to(device)
    total = function(x, target.to(device), size, weight=weight)
    total.backward()
    return total.detach().cpu(), x.grad.cpu()


def assert_equal(function, device, case):
    """To 1e-6 of the value and of the gradient's largest entry, or to an ulp or two of a logit."""
    logits, target = case[:2]
    close = max(1e-6, 2**-22 * logits.abs().max().item())
    total, grad = fused(function, device, *case)
    expected, slope = plain(*case)
    assert total.dtype == torch.float32
    assert abs(total - expected) <= close * max(1, abs(expected))
    assert (grad - slope).abs().max() <= close * max(1, slope.abs().max())
    if (target == IGNORE).all():
        assert total == 0
        assert not grad.any()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_blocks_equal_the_plain_loss(case):
    assert_equal(upsample_cross_entropy, "cpu", case)


@settings(max_examples=12, deadline=None)  # the interpreter takes half a second each
@given(cases())
def test_the_kernels_equal_the_plain_loss(case):
    assert_equal(kernels(), DEVICE, case)


TILES = [(2, 11, (11, 10), True), (2, 2, (9, 3), False), (3.5, 19, (6, 9), True),
         (4, 150, (2, 2), True), (13.7, 11, (2, 3), False), (14, 11, (2, 3), True),
         (33, 2, (2, 1), True), (1, 11, (17, 9), False), (0.6, 11, (20, 21), True)]  # fmt: skip


@pytest.mark.parametrize(("factor", "K", "source", "weighted"), TILES)
def test_kernels_of_every_tile(factor, K, source, weighted):
    """Several programs along rows, columns and classes, the last of them partly empty."""
    generator = torch.Generator().manual_seed(0)
    size = tuple(round(factor * n) for n in source)
    logits = 3 * torch.randn(2, K, *source, generator=generator)
    target = torch.randint(K, (2, size[0], max(1, size[1] - 1)), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE
    weight = torch.rand(K, generator=generator) if weighted else None
    if weight is not None:
        weight[0] = 0  # as good as ignored
    assert_equal(kernels(), DEVICE, (logits, target, size, weight))


def test_a_label_called_like_ignored_pixels_is_none():
    """With more than 255 classes."""
    logits = torch.randn(1, 257, 2, 2, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[[IGNORE, 256], [254, IGNORE]]])
    assert_equal(kernels(), DEVICE, (logits, target, (2, 2), None))


def test_images_one_by_one_have_the_gradient_of_all_together(monkeypatch):
    function = kernels()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 3, 4, generator=generator)
    case = (logits, torch.randint(5, (3, 12, 16), generator=generator), (12, 16), None)
    _, together = fused(function, DEVICE, *case)
    monkeypatch.setattr("setr.kernels.triton_loss.SUMS_BYTES", 1)
    assert torch.equal(fused(function, DEVICE, *case)[1], together)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_get_an_fp32_loss(road, dtype):
    function, device = ROADS[road]()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 70, 3, 4, generator=generator).to(dtype)
    target = torch.randint(70, (2, 12, 16), generator=generator)
    case = (logits, target, (12, 16), None)
    total, grad = fused(function, device, *case)
    expected, slope = plain(*case)
    assert (total.dtype, grad.dtype) == (torch.float32, dtype)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(grad, slope.to(dtype))


@pytest.mark.parametrize("road", ROADS)
def test_one_pixel_by_hand(road):
    function, device = ROADS[road]()
    logits = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    target = torch.ones(1, 1, 1, dtype=torch.long)
    total, grad = fused(function, device, logits, target, (1, 1), None)
    assert total.item() == pytest.approx(0.31326169)  # log(1 + 1/e)
    assert grad.flatten().tolist() == pytest.approx([0.26894143, -0.26894143])


def test_the_loss_is_exact_under_autocast_and_a_lower_matmul_precision():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5, 4, 4, generator=generator)
    case = (logits, torch.randint(5, (1, 12, 12), generator=generator), (12, 12), None)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert_equal(upsample_cross_entropy, "cpu", case)
            coarse = logits.detach().requires_grad_()
            total = upsample_cross_entropy(coarse, *case[1:3], scale=2)
        expected, _ = plain(upsample(logits, 2), *case[1:])
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_scaled_loss_keeps_small_fp16_gradients():
    """The mean's divisor must not be rounded to fp16 on its own: 1e-8 would become 0."""
    logits = torch.zeros(1, 2, 2, 2, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(1, 32, 32, dtype=torch.long)
    (upsample_cross_entropy(logits, target, (32, 32)) * 1e-8 * 2.0**10).backward()
    assert logits.grad is not None
    expected = -0.5 * 256 * 1e-8 * 2.0**10
    assert logits.grad[0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale", [50.0, 500.0, 1e4])
def test_confident_mistakes_keep_their_digits(scale):
    """Where the true class has a probability of 1e-30 and less, down to one that underflows."""
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(1, 7, 8, 8, generator=generator)).requires_grad_()
    target = torch.randint(7, (1, 16, 16), dtype=torch.uint8, generator=generator)
    target[:, :3] = IGNORE
    loss = upsample_cross_entropy(logits, target, (16, 16))
    (found,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().requires_grad_()
    wide = F.interpolate(exact, (16, 16), mode="bilinear")
    wanted = F.cross_entropy(wide, target.long(), ignore_index=IGNORE, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.allclose(found.double(), torch.autograd.grad(wanted, exact)[0], atol=1e-5)


def test_positions_are_worked_out_once_whatever_mode_asked_first():
    pytest.importorskip("triton")
    from setr.kernels.triton_loss import _axis

    device = torch.device(DEVICE)
    with torch.inference_mode():
        first = _axis(31, 7, 62, device)
    assert _axis(31, 7, 62, device) is first
    assert not any(t.is_inference() for t in (first.lower, first.share, first.begin))


def test_positions_outlive_many_sizes():
    """A CUDA graph goes on reading them at their addresses."""
    pytest.importorskip("triton")
    from setr.kernels.triton_loss import _axis

    device = torch.device(DEVICE)
    first = _axis(32, 8, 32, device)
    for n in range(2, 300):
        _axis(4 * n, n, 4 * n, device)
    assert _axis(32, 8, 32, device) is first
