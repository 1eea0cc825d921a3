"""Cheap activations are made again: gradients equal to the bit, less kept, nothing left behind."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from setr.decoders import ChannelNorm, MLANeck, UpsampleHead
from setr.layers import recompute
from setr.layers.recompute import recompute_cheap
from setr.model import create_model
from setr.training.memory import step_memory

ENCODERS = ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch14_dinov2")


def model_of(encoder, keeps_all):
    torch.manual_seed(0)
    model = create_model(
        "setr_naive_tiny", encoder=encoder, num_classes=5, img_size=56, taps=(2,)
    ).train()
    for block in model.encoder.stages():
        block.keeps_all = keeps_all
    return model


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_are_equal_to_the_bit(encoder, bf16):
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    found = []
    for keeps_all in (True, False):
        model = model_of(encoder, keeps_all)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)


def test_a_block_keeps_a_quarter_less():
    kept = [
        step_memory(
            model_of("vit_small_patch16_224", keeps_all).to("meta"),
            batch=2, size=(224, 224), device=torch.device("cpu"),
        ).activations
        for keeps_all in (True, False)
    ]  # fmt: skip
    assert kept[1] < 0.77 * kept[0]


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
def test_heads_do_not_keep_their_norms(decoder):
    """One map of the encoder's width less for every head, or stream, and equal gradients."""
    found, norms = {}, 0
    for keeps_all in (True, False):
        torch.manual_seed(0)
        model = create_model(f"setr_{decoder}_tiny", num_classes=5, img_size=64, taps=(3, 6, 9, 12))
        heads = [m for m in model.modules() if isinstance(m, (UpsampleHead, MLANeck))]
        for head in heads:
            head.keeps_all = keeps_all
        norms = sum(isinstance(m, ChannelNorm) for m in model.modules())
        torch.manual_seed(1)
        model(torch.randn(2, 3, 64, 64), with_aux=True).logits.square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        kept = step_memory(
            copy.deepcopy(model).to("meta"), batch=2, size=(64, 64), device=torch.device("cpu")
        ).activations
        found[keeps_all] = kept, grads
    assert found[True][0] - found[False][0] == norms * 2 * 192 * 4 * 4 * 4
    assert len(found[True][1]) > 100
    assert all(torch.equal(a, b) for a, b in zip(found[True][1], found[False][1], strict=True))


class Block(nn.Module):
    """An activation between two layers; `spoil` changes its input afterwards."""

    def __init__(self, spoil=False, fail=False):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)
        self.spoil, self.fail = spoil, fail

    def forward(self, x):
        wide = self.first(x)
        out = self.second(self.act(wide))
        if self.spoil:
            with torch.no_grad():
                wide += 1
        if self.fail:
            raise RuntimeError("broken block")
        return out


def test_a_changed_input_is_an_error_and_not_a_wrong_gradient():
    block = Block(spoil=True)
    recompute_cheap(block)
    with pytest.raises(RuntimeError, match=r"in ?place"):
        block(torch.randn(2, 4)).sum().backward()


def test_an_output_that_was_changed_is_kept():
    class Doubled(Block):
        def forward(self, x):
            act = self.act(self.first(x))
            act *= 2
            return self.second(act)

    found = []
    for treat in (lambda block: None, recompute_cheap):
        torch.manual_seed(0)
        block = Doubled()
        treat(block)
        block(torch.ones(2, 4)).sum().backward()
        found.append(block.second.weight.grad)
    assert torch.equal(*found)


@pytest.fixture
def packed(monkeypatch):
    """Every tensor our hooks are asked about."""
    found = []
    pack = recompute._SavedTensors.pack
    monkeypatch.setattr(
        recompute._SavedTensors, "pack", lambda self, t: found.append(t) or pack(self, t)
    )
    return found


def assert_nothing_left(packed):
    assert recompute._CURRENT.saved is None
    assert torch._C._len_torch_function_stack() == 0
    packed.clear()
    nn.Linear(4, 4)(torch.randn(2, 4, requires_grad=True))
    assert not packed


def test_nothing_is_left_behind_by_a_block_that_fails(packed):
    block = Block(fail=True)
    recompute_cheap(block)
    with pytest.raises(RuntimeError, match="broken block"):
        block(torch.randn(2, 4))
    assert_nothing_left(packed)


def test_checkpointing_takes_over():
    model = model_of("vit_tiny_patch16_224", False)
    model.set_grad_checkpointing()
    assert all(block.keeps_all for block in model.encoder.stages())
    with torch.no_grad():
        model(torch.randn(1, 3, 56, 56))
    assert recompute._CURRENT.saved is None


def test_nothing_is_left_behind_by_ctrl_c_inside_a_block(packed):
    """A notebook lives on; torch calls no forward hook then."""
    encoder = model_of("vit_tiny_patch16_224", False).encoder

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = encoder.stages()[1].mlp.register_forward_pre_hook(interrupt)
    image = torch.randn(1, 3, 56, 56)
    with pytest.raises(KeyboardInterrupt), torch.autocast("cpu", torch.bfloat16):
        encoder(image)
    assert packed
    assert_nothing_left(packed)
    handle.remove()
    encoder(image)
    assert packed


tells_of_hooks = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="torch before 2.8 does not tell of other hooks",
)


@tells_of_hooks
def test_checkpointing_around_the_encoder_takes_over():
    images, found = torch.randn(1, 3, 56, 56), []
    for call in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        encoder, wide = model_of("vit_tiny_patch16_224", False).encoder, []
        for block in encoder.stages():
            block.mlp.fc1.register_forward_hook(
                lambda m, i, out, wide=wide: wide.append(weakref.ref(out.untyped_storage()))
            )
        maps = call(encoder, images)
        alive = [storage for storage in wide if storage() is not None]
        maps[-1].square().sum().backward()
        found.append((len(alive), [p.grad for p in encoder.parameters()]))
    assert [alive for alive, _ in found] == [2, 0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@tells_of_hooks
def test_hooks_around_a_block_see_what_it_keeps():
    """So `save_on_cpu` around a model moves what its blocks keep."""
    seen = []
    for keeps_all in (True, False):
        block = Block()
        block.keeps_all = keeps_all
        recompute_cheap(block)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t
        ):
            block(torch.randn(2, 4))
        seen.append(kept)
    assert seen[0] == seen[1] != []


def test_gradients_by_torch_func():
    """It allows no hooks on saved tensors."""
    block = Block()
    recompute_cheap(block)
    x, weights = torch.randn(2, 4), dict(block.named_parameters())
    found = torch.func.grad(lambda w: functional_call(block, w, (x,)).sum())(weights)
    wanted = torch.autograd.grad(block(x).sum(), list(weights.values()))
    assert all(torch.equal(a, b) for a, b in zip(found.values(), wanted, strict=True))


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))]
)
def test_copies_are_treated_too(again, packed):
    block = Block()
    recompute_cheap(block)
    other = again(block)
    assert type(other) is type(block)
    assert isinstance(other, Block)
    x = torch.randn(2, 4)
    packed.clear()
    out = other(x)
    assert packed
    assert torch.equal(out, block(x))
    other.fail = True  # what it computes is its own
    with pytest.raises(RuntimeError, match="broken block"):
        other(x)
