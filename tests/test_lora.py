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
from setr.layers.low_rank import LowRank, merged_state
from setr.lora import add_lora
from setr.model import SETR, create_model
from setr.model_info import ModelInfo
from setr.training.complexity import parameter_counts
from setr.weights import load_weights
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


@pytest.mark.parametrize(
    "place", [{"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"device": "meta"}]
)
def test_low_rank_parts_are_where_the_weights_are(place):
    """On a GPU, too: the meta device stands for it."""
    model = tiny_model("pup").to(**place)
    add_lora(model, 2)
    assert trained_parts(model)
    assert len({(p.dtype, p.device) for p in model.parameters()}) == 1


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


def test_the_first_factor_is_drawn_as_for_a_layer_of_its_width():
    """So that steps are about as large for every width."""
    part = LowRank(torch.zeros(8, 400), 64)
    assert part.a.std().item() == pytest.approx(400**-0.5, rel=0.03)
    assert not part.b.any()


@pytest.mark.parametrize(
    ("encoder", "layers"),
    [
        ("eva02_tiny_patch14_224", 2),
        ("eva02_base_patch14_224", 4),  # queries, keys and values apart
        ("vit_small_patch16_dinov3", 2),
        ("beit_base_patch16_224", 2),
    ],
)
def test_encoders_with_their_own_attention(encoder, layers):
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
    assert len(grads) == 2 * 2 * layers
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


def test_own_states_load_with_lora_and_without(tmp_path):
    model = with_lora()
    shake(model)
    torch.save(model.state_dict(), tmp_path / "lora.pth")
    images = torch.randn(1, 3, 40, 32)
    for adapted in (False, True):
        other = tiny_model("pup").eval()
        if adapted:
            add_lora(other, 2)
        report = load_weights(other, tmp_path / "lora.pth")
        assert report.encoder_share == 1
        assert not report.unexpected
        torch.testing.assert_close(other(images), model(images))


def test_states_that_do_not_fit_lora_say_why(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(tiny_model("pup").state_dict(), path)
    model = with_lora()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for partial in (False, True):
        with pytest.raises(SetrError, match="has no LoRA layers, and the model has; load weights"):
            load_weights(model, path, partial=partial)
    torch.save(with_lora(4).state_dict(), path)
    with pytest.raises(SetrError, match=r"LoRA of rank 4, the model of rank 2; give add_lora"):
        load_weights(model, path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_trained_part_alone_can_be_loaded(tmp_path):
    model = with_lora()
    shake(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert merged_state(trained).keys() == trained.keys()  # there is nothing to merge into
    torch.save(trained, tmp_path / "part.pth")
    other = with_lora()
    load_weights(other, tmp_path / "part.pth", partial=True, new_head=True)  # no batch statistics
    images = torch.randn(1, 3, 40, 32)
    torch.testing.assert_close(other(images), model(images))


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


@pytest.mark.parametrize("change", [{"lora_rank": 2}, {"freeze": 1}, {"freeze": -1}])
def test_training_prints_the_trained_share(config, capsys, change):
    train(dataclasses.replace(config, model=dataclasses.replace(config.model, **change)))
    assert "training " in capsys.readouterr().err
    model, info = from_pretrained(config.out)
    assert not any("parametrizations" in name for name in model.state_dict())
    assert info.crop_size == (64, 64)


def test_freeze_and_lora_exclude_each_other(config):
    with pytest.raises(SetrError, match="choose one"):
        dataclasses.replace(config.model, freeze=1, lora_rank=2)
