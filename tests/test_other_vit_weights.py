"""Weights of timm's ViTs of other kinds: timm's files, NVIDIA's RADIO, SigLIP of transformers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from setr._timm import timm
from setr.config import ModelConfig
from setr.errors import SetrError
from setr.layers.timm_vit import list_encoders
from setr.model import create_model
from setr.training.build import _note_other_normalisation
from setr.weight_files.flexible_layouts import plain_names
from setr.weights import load_weights
from tests.test_other_vits import (
    KINDS,
    RADIO,
    RELATIVE,
    SHARED,
    SIGLIP,
    SMALL,
    model_with,
    randomised,
)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_timm(name, tmp_path):
    arguments = {**SMALL, "img_size": 64, **KINDS[name]}
    theirs = randomised(timm.create_model(name, num_classes=5, **arguments))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model, images = model_with(name, "linear_nano", **KINDS[name]).eval(), torch.randn(1, 3, 64, 64)
    report = load_weights(model, tmp_path / "timm.pth")
    assert report.encoder_share == 1
    assert not report.resized
    expected = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


def radio_file(**more: Any) -> dict[str, Tensor]:
    """Random weights with NVIDIA's names, its teachers' heads included."""
    torch.manual_seed(0)
    C, prefix = 32, "radio_model.model."
    block = timm.create_model(RADIO, **SMALL, **KINDS[RADIO]).blocks.state_dict()
    return {
        f"{prefix}patch_generator.embedder.weight": torch.randn(C, 3 * 16 * 16) / 16,
        f"{prefix}patch_generator.pos_embed": torch.randn(1, 64, C),
        f"{prefix}patch_generator.cls_token.token": torch.randn(8, C),
        **{
            f"{prefix}blocks.{n.replace('.gamma', '.grandma')}": torch.randn_like(v) * 0.3
            for n, v in block.items()
        },
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "radio_model.summary_idxs": torch.arange(3),
        "adaptors.clip.head_mlp.fc1.weight": torch.zeros(4, C),
        **more,
    }


def test_nvidias_own_file(tmp_path):
    torch.save(radio_file(), tmp_path / "radio.pth")
    theirs = timm.create_model(RADIO, **SMALL, **KINDS[RADIO]).eval()
    state = timm.models.naflexvit.checkpoint_filter_fn(radio_file(), theirs)
    theirs.load_state_dict(state)
    model, images = model_with(RADIO, "linear_nano", **KINDS[RADIO]), torch.randn(1, 3, 48, 96)
    report = load_weights(model.eval(), tmp_path / "radio.pth")
    assert (report.dialect, report.encoder_share) == ("radio", 1)
    assert report.filled == ["encoder.vit.patch_embed.proj.bias"]
    assert len(report.unexpected) == 3
    expected = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_nvidias_file_is_not_for_vits_with_another_way_of_resampling(tmp_path):
    torch.save(radio_file(), tmp_path / "radio.pth")
    model = model_with("vit_base_patch16_radio_v3", "linear_nano")
    with pytest.raises(SetrError, match=r"choose the encoder naflexvit_\*_radio_\* that"):
        load_weights(model, tmp_path / "radio.pth")


def test_a_damaged_file_of_nvidia_is_told(tmp_path):
    state = radio_file()
    del state["radio_model.model.patch_generator.cls_token.token"]
    torch.save(state, tmp_path / "radio.pth")
    with pytest.raises(SetrError, match="incomplete or damaged; tensors contradict its layout"):
        load_weights(model_with(RADIO, "linear_nano"), tmp_path / "radio.pth")


def huggingface_siglip(state: dict[str, Tensor], *, flat: bool) -> dict[str, Tensor]:
    """Weights of a timm ViT with the names of transformers, and with other parts of its file."""
    start, named = "vision_model.", {}
    for name, value in state.items():
        if name.startswith("patch_embed."):
            value = value.permute(0, 2, 3, 1).flatten(1) if flat and value.ndim == 4 else value
            named[f"{start}embeddings.patch_embedding.{name.rpartition('.')[2]}"] = value
        elif name == "pos_embed":
            named[f"{start}embeddings.position_embedding.weight"] = value[0]
        elif name == "cls_token":
            named[f"{start}embeddings.class_embedding"] = value[0, 0]
        elif name.startswith("norm_pre."):
            named[f"{start}pre_layrnorm.{name[9:]}"] = value
        elif name.startswith("norm."):
            named[f"{start}post_layernorm.{name[5:]}"] = value
        elif ".attn.qkv." in name:
            layer, leaf = f"{start}encoder.layers.{name.split('.')[1]}.", name.rpartition(".")[2]
            parts = zip("qkv", value.chunk(3), strict=True)
            named |= {f"{layer}self_attn.{p}_proj.{leaf}": part for p, part in parts}
        else:
            for ours, theirs in (("blocks", "encoder.layers"), ("norm", "layer_norm"),
                                 ("attn.proj", "self_attn.out_proj")):  # fmt: skip
                name = name.replace(ours, theirs)
            named[start + name] = value
    others = {"vision_model.head.probe", "text_model.encoder.layers.0.mlp.fc1.weight", "logit_bias"}
    return named | dict.fromkeys(others, torch.zeros(1))


@pytest.mark.parametrize("name", [SIGLIP, "vit_base_patch16_siglip_224"])
def test_siglip_of_transformers(name, tmp_path):
    flexible = name == SIGLIP
    more = {"pos_embed_grid_size": (4, 4)} if flexible else {}
    theirs = randomised(timm.create_model(name, num_classes=0, img_size=64, **SMALL, **more))
    state = {
        n: v for n, v in plain_names(theirs.state_dict()).items() if not n.startswith("attn_pool")
    }
    torch.save(huggingface_siglip(state, flat=flexible), tmp_path / "siglip.pth")
    model, images = model_with(name, "linear_nano", **more).eval(), torch.randn(1, 3, 64, 64)
    report = load_weights(model, tmp_path / "siglip.pth")
    assert (report.dialect, report.encoder_share, len(report.unexpected)) == ("siglip", 1, 3)
    expected = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_clip_of_transformers(tmp_path):
    name = "vit_base_patch16_clip_quickgelu_224"
    theirs = randomised(timm.create_model(name, num_classes=0, img_size=64, **SMALL))
    torch.save(huggingface_siglip(theirs.state_dict(), flat=False), tmp_path / "clip.pth")
    model, images = model_with(name, "linear_nano").eval(), torch.randn(1, 3, 64, 64)
    report = load_weights(model, tmp_path / "clip.pth")
    assert (report.dialect, report.encoder_share, len(report.unexpected)) == ("clip", 1, 3)
    expected = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(SetrError, match="choose the encoder that these weights belong to"):
        load_weights(model_with(SIGLIP, "linear_nano"), tmp_path / "clip.pth")


def test_positions_of_a_plain_vit_are_resampled_to_the_naflex_grid(tmp_path):
    name = "vit_base_patch16_siglip_224"
    theirs = randomised(timm.create_model(name, num_classes=0, img_size=64, **SMALL))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    model = model_with(SIGLIP, "linear_nano", pos_embed_grid_size=(4, 4)).eval()
    assert load_weights(model, tmp_path / "vit.pth").encoder_share == 1
    images = torch.randn(1, 3, 64, 64)
    expected = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-3, atol=1e-3)  # tanh
    finer = model_with(SIGLIP, "linear_nano")
    assert load_weights(finer, tmp_path / "vit.pth").resized == ["encoder.vit.pos_embed"]


@pytest.mark.filterwarnings("ignore:Using a non-tuple", "ignore:torch.searchsorted")
@pytest.mark.parametrize("name", [RELATIVE, SHARED])
def test_tables_are_resampled_as_timm_does_when_it_loads(name, tmp_path):
    more = {"rel_pos_type": "bias"}
    theirs = randomised(timm.create_model(name, num_classes=0, img_size=64, **SMALL, **more))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    size = (96, 32)
    model = create_model(
        "linear_nano", num_classes=2, encoder=name, img_size=size, encoder_args={**SMALL, **more}
    )
    report = load_weights(model.eval(), tmp_path / "timm.pth")
    assert len(report.resized) == (1 if name == SHARED else 2)
    theirs.set_input_size(size)
    images = torch.randn(1, 3, *size)
    expected = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


# --- names and normalisation ----------------------------------------------------------------------


def test_every_plain_vit_of_timm_is_listed():
    names = set(list_encoders())
    for module in ("eva", "vision_transformer", "beit", "deit", "naflexvit", "cait", "convit"):
        assert names >= {n for n in timm.list_models(module=module) if not n.startswith("test_")}
    assert names >= {RELATIVE, SHARED}
    assert {"qwen3_vit_88m_enc", "deepseek_vit_412m_enc", "gemma4_vit_167m_enc"} <= names
    assert not names & {"gemma4_vit_167m"}
    assert not names & {"qwen3_vit_88m", "qwen3_vit_88m_merge", "deepseek_vit_412m"}
    assert not [n for n in names if re.search(r"_r(26|50)?_|resnet", n)]


def test_the_normalisation_that_a_note_asks_for_is_accepted(capsys):
    """CLIP's values have eight digits, and six are printed."""
    model = model_with(RADIO, **KINDS[RADIO])
    _note_other_normalisation(model, ModelConfig(), "c_radio", "radio")
    pattern = r"note: \S+ was trained with --model\.mean (.+) --model\.std (.+); this run is not"
    found = re.search(pattern, capsys.readouterr().err)
    assert found
    mean, std = (tuple(float(v) for v in values.split()) for values in found.groups())
    assert mean == pytest.approx((0.48145466, 0.4578275, 0.40821073), abs=1e-6)
    _note_other_normalisation(model, ModelConfig(mean=mean, std=std), "c_radio", "radio")
    assert not capsys.readouterr().err
