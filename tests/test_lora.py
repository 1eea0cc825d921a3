"""Low-rank adaptation trains a small part, and saved models do not know about it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from setr.engine import train
from setr.errors import SetrError
from setr.hub import from_pretrained, save_pretrained
from setr.labels import Labels
from setr.lora import add_lora, merged_state
from setr.model import SETR, create_model
from setr.model_info import ModelInfo
from setr.training.complexity import parameter_counts
from tests.conftest import tiny_model

INFO = ModelInfo(labels=Labels(tuple("abcde")))


def with_lora(rank: int = 2) -> SETR:
    torch.manual_seed(0)
    model = tiny_model("pup").eval()
    add_lora(model, rank)
    return model


def shake(model: SETR) -> None:
    """Move the low-rank parts away from zero, as training does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".0.b"):
                parameter.normal_()


def test_function_starts_unchanged():
    torch.manual_seed(0)
    plain = tiny_model("pup").eval()
    images = torch.randn(1, 3, 32, 48)
    before = plain(images)
    add_lora(plain, 2)
    assert torch.equal(plain(images), before)


def test_only_low_rank_parts_and_heads_train():
    model = with_lora()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("encoder.")} == {
        f"encoder.vit.blocks.{i}.attn.{layer}.parametrizations.weight.0.{part}"
        for i in (0, 1) for layer in ("qkv", "proj") for part in "ab"
    }  # fmt: skip
    rank, width = 2, 32
    per_block = rank * (width + 3 * width) + rank * (width + width)
    heads = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder."))
    assert parameter_counts(model)[0] == 2 * per_block + heads


def test_freezing_leaves_original_weights_frozen():
    model = with_lora()
    before = trained_parts(model)
    assert before == {f"{i}.0.{part}" for i in (0, 1) for part in "ab"}
    model.encoder.freeze(1)
    assert trained_parts(model) == {"1.0.a", "1.0.b"}
    model.encoder.freeze(-1)
    assert trained_parts(model) == set()
    model.encoder.freeze(0)
    assert trained_parts(model) == trained_parts(copy.deepcopy(model)) == before
    again = copy.deepcopy(model)
    again.encoder.freeze(0)
    assert trained_parts(again) == before


def trained_parts(model: SETR) -> set[str]:
    """Parameters of the encoder that are trained: number of the block, and the end of the name."""
    trained = {n for n, p in model.encoder.named_parameters() if p.requires_grad}
    return {f"{n.split('.')[2]}.{n.partition('.weight.')[2]}" for n in trained}


def test_every_trained_parameter_gets_a_gradient():
    model = with_lora().train()
    shake(model)
    output = model(torch.randn(2, 3, 32, 32), with_aux=True)
    sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad and name.startswith("encoder."):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("encoder", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_encoders_with_their_own_attention(encoder):
    model = create_model(
        "setr_naive_tiny",
        num_classes=3,
        encoder=encoder,
        channels=8,
        encoder_args={"depth": 2, "embed_dim": 48, "num_heads": 2},
    )
    add_lora(model, 2)
    shake(model)
    model(torch.randn(2, 3, 56, 84)).square().mean().backward()
    grads = [p.grad for n, p in model.named_parameters() if n.endswith((".0.a", ".0.b"))]
    assert len(grads) >= 8
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def test_saving_merges(tmp_path):
    model = with_lora()
    shake(model)
    save_pretrained(tmp_path / "m", model, INFO)
    plain, _ = from_pretrained(tmp_path / "m")
    images = torch.randn(1, 3, 40, 32)
    torch.testing.assert_close(plain(images), model(images))
    assert not any("parametrizations" in name for name in plain.state_dict())
    assert any("parametrizations" in name for name in model.state_dict())


def test_merging_leaves_plain_states_alone():
    state = tiny_model("naive").state_dict()
    assert merged_state(state).keys() == state.keys()


def test_refusals():
    with pytest.raises(SetrError, match="lora_rank 99: give 1 to the encoder's width 32"):
        add_lora(tiny_model("pup"), 99)
    model = tiny_model("pup")
    add_lora(model, 2)
    with pytest.raises(SetrError, match="lora_rank 4: the model already has LoRA"):
        add_lora(model, 4)
    with torch.device("meta"):
        baseline = create_model("fcn_r101", num_classes=3)
    with pytest.raises(SetrError, match="has no attention layers"):
        add_lora(baseline, 2)
    with torch.device("meta"):
        other = create_model("setr_naive_base", num_classes=3, encoder="vit_base_patch16_xp_224")
    with pytest.raises(SetrError, match=r"lora_rank 2: vit_base_patch16_xp_224 has none of .*qkv"):
        add_lora(other, 2)
    assert all(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("change", [{"lora_rank": 2}, {"freeze": 3}, {"freeze": -1}])
def test_training_prints_the_trained_share(config, capsys, change):
    train(dataclasses.replace(config, model=dataclasses.replace(config.model, **change)))
    assert "training " in capsys.readouterr().err
    model, info = from_pretrained(config.out)
    assert not any("parametrizations" in name for name in model.state_dict())
    assert info.crop_size == (64, 64)


def test_freeze_and_lora_exclude_each_other(config):
    with pytest.raises(SetrError, match="choose one"):
        dataclasses.replace(config.model, freeze=1, lora_rank=2)
