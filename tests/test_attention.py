from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from setr.encoder import Encoder
from setr.layers import attention
from setr.layers.cpu_blocks import speed_up


class Block(nn.Module):
    def forward(self, *tensors, **options):
        return F.scaled_dot_product_attention(*tensors, **options)


@pytest.fixture
def calls(monkeypatch):
    found = []
    real = attention._Attention.apply
    monkeypatch.setattr(attention._Attention, "apply", lambda *a: found.append(1) or real(*a))
    return found


def qkv(*shape, strided=False):
    torch.manual_seed(0)
    B, h, N, D = shape
    if strided:  # as timm makes them: slices of one projection
        joint = torch.randn(B, N, 3, h, D, dtype=torch.bfloat16)
        return [x.detach().requires_grad_() for x in joint.permute(2, 0, 3, 1, 4).unbind(0)]
    return [torch.randn(shape, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scores", "rounding"),
    [
        *((torch.bfloat16, scores, 2**-6) for scores in (100, 2**21)),
        *((torch.float32, scores, 1e-6) for scores in (100, 2**19)),
    ],
)
def test_equals_fp64_attention(request, monkeypatch, calls, dtype, scores, rounding, strided):
    if dtype is torch.float32:
        request.getfixturevalue("onednn")
    monkeypatch.setitem(attention.SCORES, dtype, scores)
    block = Block()
    speed_up(block)
    tensors = [x.detach().to(dtype).requires_grad_() for x in qkv(2, 3, 37, 16, strided=strided)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        out = block(*tensors)
    ours = [out, *torch.autograd.grad(out.float().square().sum(), tensors)]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    out = F.scaled_dot_product_attention(*exact)
    for x, true in zip(ours, [out, *torch.autograd.grad(out.square().sum(), exact)], strict=True):
        assert (x.double() - true).norm() / true.norm() < rounding
    assert calls


def test_runs_only_where_it_applies(calls):
    block = Block()
    speed_up(block)
    tensors = qkv(1, 2, 9, 8)
    block(*tensors)
    with torch.autocast("cpu", torch.float16):
        block(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        block(*tensors, is_causal=True)
        block(*tensors, attn_mask=torch.ones(9, 9, dtype=torch.bool))
        F.scaled_dot_product_attention(*tensors)
        with pytest.raises(RuntimeError):
            block(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 5), torch.ones(1, 2, 3, 4))
        calls.clear()
        F.scaled_dot_product_attention(*tensors)  # the failed call left nothing behind
        assert not calls
        block(*tensors)
        copy.deepcopy(block)(*tensors)
    assert len(calls) == 2


def test_checkpointed_blocks_recompute_the_same_way(calls):
    encoder = Encoder("vit_tiny_patch16_224", taps=(1, 2), img_size=32, depth=2)
    image = torch.rand(1, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        encoder.set_grad_checkpointing(checkpointing)
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(x.float().square().sum() for x in encoder(image))
        loss.backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    assert len(calls) == 2 + 2 + 2  # the last two by the backward pass
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
