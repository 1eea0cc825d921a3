"""Images with other bands than red, green and blue: model, data, training, prediction."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from setr import load_weights, scenes
from setr.architecture import read_architecture
from setr.dialects import translate
from setr.errors import USAGE, SetrError
from setr.hub import ModelInfo, from_pretrained, save_pretrained
from setr.model import create_model
from setr.predictor import Predictor
from setr.weights import match_weights
from tests.conftest import tiny_model

STEM = "encoder.vit.patch_embed.proj.weight"


def info_of(channels: int, **values: object) -> ModelInfo:
    return ModelInfo(scenes.LABELS, (0.4,) * channels, (0.2,) * channels, **values)  # type: ignore


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_rgb_weights_are_adapted_as_timm_does(channels, tmp_path):
    """Summed for one channel, else repeated and scaled; never the other way round."""
    rgb = tiny_model("naive")
    state = {k: v for k, v in rgb.state_dict().items() if k.startswith("encoder.")}
    path = tmp_path / "encoder.safetensors"
    save_file({k.removeprefix("encoder.vit."): v for k, v in state.items()}, path)
    model, weight = tiny_model("naive", in_chans=channels), state[STEM]
    report = load_weights(model, path)
    summed = weight.sum(dim=1, keepdim=True)
    wide = weight.repeat(1, 2, 1, 1)[:, :channels] * (3 / channels)
    torch.testing.assert_close(model.state_dict()[STEM], summed if channels == 1 else wide)
    assert (report.adapted, report.missing) == ([STEM], [])
    assert f"adapted from RGB to the model's channels: {STEM}" in str(report)
    with pytest.raises(SetrError, match=rf"{STEM} is \(32, {channels}, 8, 8\)"):
        match_weights(rgb, translate(model.state_dict(), "x"), "x")


@pytest.mark.parametrize("name", ["setr_mla_nano", "hybrid_base", "semantic_fpn_r101"])
def test_models_of_other_channels_come_back_from_their_folder(name, tmp_path):
    small = {"encoder_args": {"embed_dim": 24, "depth": 4, "num_heads": 2}, "img_size": 32}
    if name == "semantic_fpn_r101":
        small = {"encoder": "resnet10t"}
    elif name == "hybrid_base":
        small |= {"resnet": "resnet10t", "channels": 8}
    model = create_model(name, num_classes=len(scenes.CLASSES), in_chans=4, **small).eval()
    save_pretrained(tmp_path, model, info_of(4))
    again, info = from_pretrained(tmp_path)
    assert (again.encoder.in_chans, len(info.mean)) == (4, 4)
    images = torch.randn(1, 4, 41, 50)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), model(images))
    with pytest.raises(SetrError, match="the model takes 4 channels; give ModelInfo one value"):
        Predictor(model, info_of(3))
    with pytest.raises(SetrError, match="in_chans 0: give at least one") as caught:
        create_model(name, num_classes=2, in_chans=0)
    assert caught.value.code == USAGE


def test_a_foreign_checkpoint_tells_its_channels():
    model = tiny_model("pup", in_chans=6)
    found = dataclasses.replace(translate(model.state_dict(), "x"), dialect="mmseg")
    arguments = read_architecture(found, {}, source="x", num_heads=2, img_size=32)
    assert arguments["encoder_args"]["in_chans"] == 6
