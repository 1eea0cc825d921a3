"""Settings in YAML: numbers in any form people write, and nothing else in their place."""

from __future__ import annotations

import pytest

from setr.config import Config
from setr.errors import SetrError
from setr.recipes import recipe
from setr.training.named_config import named_config


@pytest.mark.parametrize(
    ("text", "rate"), [("1e-3", 1e-3), ("'2E-4'", 2e-4), ("1", 1.0), ("5.e-1", 0.5)]
)
def test_a_rate_in_yaml_may_have_any_form_of_a_number(text, rate):
    assert Config.from_yaml(f"optim: {{lr: {text}, min_lr: 0}}").optim.lr == rate
    scales = Config.from_yaml(f"data: {{scale_range: [{text}, 2]}}").data.scale_range
    assert scales == (rate, 2.0)


@pytest.mark.parametrize("text", ["fast", "nan", "inf", "1e999", "true", "[1e-3]"])
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(SetrError, match=r"optim\.lr: .*: give a number"):
        Config.from_yaml(f"optim: {{lr: {text}}}")
    with pytest.raises(SetrError, match=r"data\.scale_range: .*: give two numbers"):
        Config.from_yaml(f"data: {{scale_range: [{text}, 2]}}")


def test_a_list_of_another_length_is_refused():
    with pytest.raises(SetrError, match=r"crop_size: \[64, 64, 3\]: give two whole numbers"):
        Config.from_yaml("data: {crop_size: [64, 64, 3]}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {loss: ce}", "train.loss: 'ce': give one of cross_entropy, ohem, focal, dice"),
        ("model: {aux: 1}", "model.aux: 1: give true or false"),
        ("model: {mean: 0.5}", "model.mean: 0.5: give numbers"),
        ("train: {steps: 1.5}", "train.steps: 1.5: give a whole number"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_does(text, expected):
    with pytest.raises(SetrError) as caught:
        Config.from_yaml(text)
    assert expected in str(caught.value)


def test_settings_in_another_encoding_are_refused(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes("out: café\n".encode("latin-1"))
    with pytest.raises(SetrError, match=r"settings\.yaml: not UTF-8"):
        Config.load(path)
    with pytest.raises(SetrError, match=r"none\.yaml: no such config file"):
        Config.load(str(tmp_path / "none.yaml"))


def test_what_a_file_leaves_out_is_its_recipes(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("recipe: finetune\ntrain: {epochs: 3}\ndata: {crop_size: [96, 96]}\n")
    own = recipe("finetune").replace({"train.epochs": 3, "data.crop_size": (96, 96)})
    assert named_config(str(path)) == own
    whole = own.replace({"optim.lr": 1.0, "optim.name": "sgd"})
    path.write_text(whole.to_yaml())
    assert named_config(str(path)) == whole == Config.load(path)
    path.write_text("recipe: my own\ntrain: {steps: 3}\n")
    assert named_config(str(path)) == Config.load(path)
