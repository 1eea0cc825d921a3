"""The vision encoder of Gemma 4, compared with timm's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from setr._timm import timm
from setr.config import ModelConfig
from setr.encoder import Encoder
from setr.explain import attention_maps, position_similarity
from setr.exporting.graphs import Graph, trace
from setr.lora import add_lora
from setr.model import SETR, create_model
from setr.training.build import _note_other_normalisation
from setr.training.complexity import forward_flops
from setr.weights import load_weights
from tests.models import assert_comes_back
from tests.test_other_vits import randomised

NAMES = ["gemma4_vit_167m_enc", "gemma4_vit_570m_enc"]
SMALL = {
    "embed_dim": 32, "depth": 2, "num_heads": 2, "head_dim": 16, "intermediate_size": 48,
    "position_embedding_size": 16,
}  # fmt: skip


def theirs(name: str) -> Any:
    """timm's model with random weights, and limits that cut some inputs and outputs off."""
    vit = randomised(timm.create_model(name, img_size=64, global_pool="", **SMALL))
    for part, buffer in vit.named_buffers():
        if part.endswith(("put_min", "put_max")):
            buffer.fill_(-1.5 if part.endswith("min") else 1.25)
    return vit


def ours(name: str, kind: str = "linear_nano", **more: Any) -> SETR:
    torch.manual_seed(0)
    return create_model(
        kind, num_classes=3, encoder=name, img_size=64, encoder_args={**SMALL, **more}
    )


def file_of_timm(vit: Any) -> dict[str, Tensor]:
    return dict(vit.state_dict())


def file_of_transformers(vit: Any) -> dict[str, Tensor]:
    """The names that timm's filter turns into its own, and a language model beside them."""
    swaps = {
        "patch_embed.": "patch_embedder.", "blocks.": "encoder.layers.", ".attn.": ".self_attn.",
        ".norm1.": ".input_layernorm.", ".norm2.": ".post_attention_layernorm.",
        ".norm3.": ".pre_feedforward_layernorm.", ".norm4.": ".post_feedforward_layernorm.",
    }  # fmt: skip
    named = {}
    for name, value in vit.state_dict().items():
        for own, foreign in swaps.items():
            name = name.replace(own, foreign)
        named[f"model.vision_tower.{name}"] = value
    named["model.vision_tower.encoder.rotary_emb.inv_freq"] = torch.ones(4)
    named["model.language_model.layers.0.self_attn.q_proj.weight"] = torch.ones(3)
    return named


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (48, 128), (160, 32)])
@pytest.mark.parametrize("layout", [file_of_timm, file_of_transformers])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_computes_what_timm_computes(name, layout, size, tmp_path):
    vit = theirs(name)
    torch.save(layout(vit), tmp_path / "weights.pth")
    model = ours(name).eval()
    report = load_weights(model, tmp_path / "weights.pth")
    assert (report.dialect, report.encoder_share) == ("gemma4", 1)
    images = torch.rand(2, 3, *size)
    expected = vit.forward_intermediates(images, indices=[1], intermediates_only=True)
    found = model.encoder((images - 0.5) / 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_timm_reads_the_names_of_transformers_the_same_way():
    vit = theirs(NAMES[0])
    again = timm.models.gemma4_vit.checkpoint_filter_fn_encoder(file_of_transformers(vit), vit)
    assert again.keys() == vit.state_dict().keys()


def test_the_note_asks_for_the_normalisation_that_timm_does_inside(capsys):
    model = ours(NAMES[0])
    _note_other_normalisation(model, ModelConfig(), "gemma4_e4b_it", "gemma4")
    assert (
        "--model.mean 0.5 0.5 0.5 --model.std 0.5 0.5 0.5; this run is" in capsys.readouterr().err
    )
    half = (0.5, 0.5, 0.5)
    _note_other_normalisation(model, ModelConfig(mean=half, std=half), "gemma4_e4b_it", "gemma4")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_recomputes_and_is_near_in_bf16(name):
    model = randomised(ours(name, "setr_mla_nano", drop_path_rate=0.0)).train()
    images = torch.randn(2, 3, 60, 90)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        output = model(images, with_aux=True)
        sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
        return [p.grad for p in model.parameters()]

    plain = gradients()
    assert not [1 for gradient in plain if gradient is None]
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(), plain, rtol=1e-3, atol=1e-5)
    model.eval()
    with torch.inference_mode():
        exact = model.encoder(images)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.encoder(images)[-1]
    assert (rough - exact).abs().max() < 0.06 * exact.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_same(name, tmp_path):
    """Also without weights, where timm's limits are infinite and files must not be."""
    assert_comes_back(randomised(ours(name)), tmp_path)


@torch.inference_mode()
def test_around_the_encoder():
    model = randomised(ours(NAMES[0]))
    maps = attention_maps(model, torch.randn(1, 3, 48, 80), [1, 2], (0, 0))
    assert {m.shape for m in maps.values()} == {(2, 3, 5)}
    assert all((m.sum((1, 2)) <= 1 + 1e-5).all() for m in maps.values())
    assert position_similarity(model).shape == (4, 4, 4, 4)
    encoder = Encoder(NAMES[0], taps=(1,), img_size=64, in_chans=5, patch_stride=8, **SMALL)
    assert encoder(torch.randn(1, 5, 40, 56))[0].shape == (1, 32, 5, 7)


def test_operations_lora_and_export():
    with torch.device("meta"):
        empty = ours(NAMES[0])
    assert 2 < forward_flops(empty, 96, 160) / forward_flops(empty, 64, 96) < 6
    model = randomised(ours(NAMES[0]))
    program = trace(Graph(model, "logits")).module(check_guards=False)
    for shape in ((1, 3, 64, 64), (3, 3, 90, 37), (2, 3, 37, 90)):
        images = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(program(images)[0], model(images), atol=1e-4, rtol=1e-4)
    add_lora(model, 2)
    free = {n.split(".attn.")[1].split(".")[0]
            for n, p in model.encoder.named_parameters() if p.requires_grad}  # fmt: skip
    assert free == {"q_proj", "k_proj", "v_proj", "o_proj"}
