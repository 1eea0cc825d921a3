"""fp32 products by oneDNN: the same values and derivatives, only where they apply."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from setr.encoder import Encoder
from setr.layers import cpu_blocks, products
from setr.layers.products import linear, worth_it


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 33, 5), (1, 5)], ids=str)
def test_linear_equals_fp64(onednn, shape, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    given = [x, weight, torch.randn(11, requires_grad=True)][: 2 + bias]
    exact = [t.detach().double().requires_grad_() for t in given]
    out, true = linear(*given), F.linear(*exact)
    torch.testing.assert_close(out.double(), true, rtol=1e-6, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(out.square().sum(), given),
        torch.autograd.grad(true.square().sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_rows_with_gaps_are_made_dense_first(onednn):
    """oneDNN would compute them by its reference loops."""
    rows = torch.randn(6, 3, 4)[:, 1]
    assert products._dense(rows).is_contiguous()
    whole = torch.randn(6, 4)
    assert products._dense(whole) is whole
    assert products._dense(whole.t()).data_ptr() == whole.data_ptr()
    torch.testing.assert_close(products.product(rows, whole), rows @ whole.T)


def test_only_what_needs_a_derivative_gets_one(onednn):
    x, weight = torch.randn(4, 5), torch.randn(3, 5, requires_grad=True)
    out = linear(x, weight)
    out.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(3, 5))
    assert x.grad is None


def test_worth_it_asks_for_size_kind_and_processor(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    x, weight = torch.empty(1024, 64), torch.empty(64, 64)
    assert worth_it(x, weight)
    assert not worth_it(x[:100], weight)
    assert not worth_it(x.bfloat16(), weight.bfloat16())
    assert not worth_it(x.double(), weight.double())
    assert not worth_it(x.to("meta"), weight.to("meta"))
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert not worth_it(x, weight)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_an_encoder_computes_the_same_by_either_route(onednn, monkeypatch, name):
    """Values and gradients of a block's parameters, checkpointed too; EVA names its arguments."""
    torch.manual_seed(0)
    encoder = Encoder(name, taps=(1, 2), img_size=48, depth=2)
    layers = sum(isinstance(m, torch.nn.Linear) for m in encoder.vit.blocks.modules())
    image, found = torch.rand(2, 3, 48, 64), []
    real, calls = products._Linear.apply, []
    monkeypatch.setattr(products._Linear, "apply", lambda *a: calls.append(1) or real(*a))
    for route, checkpointing in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr(cpu_blocks, "onednn_is_faster", lambda route=route: route)
        encoder.set_grad_checkpointing(checkpointing)
        encoder.zero_grad()
        maps = encoder(image)
        sum(x.square().sum() for x in maps).backward()
        found.append([*maps, *(p.grad.clone() for p in encoder.parameters())])
    assert len(calls) == 3 * layers  # once, and twice where blocks are recomputed
    for plain, routed, recomputed in zip(*found, strict=True):
        assert torch.equal(routed, recomputed)
        assert (routed - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_exact_products_put_the_precision_back(device):
    x = torch.ones(2, 2, device=device)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), products.exact_products(x.device):
            assert torch.get_float32_matmul_precision() == "highest"
            assert (x @ x).dtype is torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_keep_exact_products_until_the_last_one_leaves():
    """The precision is one for the process, and threads share a predictor."""
    first, second = (products.exact_products(torch.device("cpu")) for _ in range(2))
    torch.set_float32_matmul_precision("high")
    try:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("is_cuda", [False, True])
def test_blocks_on_a_gpu_are_left_alone(onednn, is_cuda):
    block = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(is_cuda=is_cuda)]))
    assert (cpu_blocks._fast_ops(block) is cpu_blocks._FAST_OPS) is not is_cuda
