"""JSON and YAML of strangers: one kind of error, and no more memory than the text has."""

from __future__ import annotations

import json

import pytest
import yaml

from setr.config import Config
from setr.data.data_yaml import read_description
from setr.errors import SetrError
from setr.hub import from_pretrained
from setr.reading import typed_yaml
from setr.reading.parsed import json_of, yaml_of
from setr.weight_files.naming import recorded
from setr.weight_files.transformers_files import transformers_settings

DEEP = {"objects": '{"a":' * 100_000, "lists": "[" * 100_000, "number": '{"a": ' + "1" * 5000 + "}"}


@pytest.mark.parametrize("kind", DEEP)
def test_json(kind, tmp_path):
    with pytest.raises(json.JSONDecodeError, match=r"nested too deeply|limit \(4300"):
        json_of(DEEP[kind])
    (tmp_path / "config.json").write_text(DEEP[kind])
    (tmp_path / "model.safetensors").touch()
    for read in (from_pretrained, transformers_settings):
        with pytest.raises(SetrError, match=r"config\.json: broken") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_json_that_is_no_text_or_right():
    with pytest.raises(UnicodeDecodeError):
        json_of(b'{"a": "\xff"}')
    assert json_of(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: " + "[" * 1000, "nested too deeply"),
        ("a: 2024-02-31", "day is out of range"),
        ("a: 0b_", "invalid literal"),
        ("a: " + "1" * 5000, r"limit \(4300"),  # " digits" from 3.11 on
        ("a: [", "line 1"),
    ],
)
def test_yaml(text, reason, tmp_path):
    with pytest.raises(yaml.YAMLError):
        yaml_of(text)
    with pytest.raises(SetrError, match=f"c.yaml: not valid YAML .*{reason}"):
        typed_yaml.parse(Config, text, "c.yaml")
    if "2024" not in text:
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(SetrError, match=rf"data\.yaml: not valid YAML .*{reason}"):
            read_description(tmp_path)


def test_aliases_stand_for_no_more_than_memory_holds(tmp_path):
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "classes: *l11"]))
    with pytest.raises(SetrError, match="its aliases stand for more than 1,000,000 values"):
        read_description(tmp_path)
    assert yaml_of("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    inside = yaml_of("&a [*a]")
    assert inside[0] is inside


def test_folders_may_be_called_like_dates(tmp_path):
    (tmp_path / "2024-05-01").mkdir()
    (tmp_path / "data.yaml").write_text("train: 2024-05-01\nclasses: [2024-02-31, b]\n")
    found = read_description(tmp_path)
    assert found.splits == {"train": ("2024-05-01",)}
    assert found.labels.classes == ("2024-02-31", "b")


@pytest.mark.parametrize(
    ("config", "preprocessor"),
    [
        ({"id2label": {"a": "road", "b": "sky"}}, {}),
        ({"id2label": {"1": "road", "0": ["sky"]}, "backbone_out_indices": ["x"]}, {}),
        ({"model_type": "beit", "out_indices": ["last"]}, {}),
        ({}, {"image_mean": "half"}),
        ({}, {"image_std": [None]}),
        ({}, {"image_mean": 3}),
    ],
)
def test_settings_of_transformers_of_other_types(config, preprocessor, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dpt", **config}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with pytest.raises(SetrError, match="broken settings of transformers"):
        transformers_settings(tmp_path)


@pytest.mark.parametrize("text", ["(1,,2)", "[1)", "(01)", "(" + "1" * 5000 + ")"])
def test_a_recorded_setting_that_is_none(text):
    assert recorded({"cfg": f"crop_size = {text}"}, "crop_size") is None
    assert recorded({"cfg": "crop_size = (64, 48)"}, "crop_size") == (64, 48)
