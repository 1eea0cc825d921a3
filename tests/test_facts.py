"""What a run was given can be told apart, and places may differ."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from setr.config import Config
from setr.datasets import open_dataset
from setr.distributed import differences
from setr.errors import USAGE, SetrError
from setr.facts import data_facts, require_same_run, run_facts


def facts(root, config: Config | None = None):
    return run_facts(config or Config(), open_dataset(str(root), "train"))


def test_the_same_data_elsewhere_are_the_same(folder_data, tmp_path):
    copy = shutil.copytree(folder_data, tmp_path / "other" / "place")
    assert facts(folder_data) == facts(copy)
    moved = Config(out="elsewhere", data=dataclasses.replace(Config().data, root=str(copy)))
    assert facts(copy, moved) == facts(folder_data)


def test_other_files_sizes_and_classes_are_named(folder_data, tmp_path):
    before = data_facts(open_dataset(str(folder_data), "train"))
    image = folder_data / "images" / "train" / "scene_000.png"
    image.write_bytes(image.read_bytes() + b"\0")
    assert "file sizes" in differences(before, data_facts(open_dataset(str(folder_data), "train")))
    for kind in ("images", "labels"):
        (folder_data / kind / "train" / "scene_000.png").unlink()
    found = differences(before, data_facts(open_dataset(str(folder_data), "train")))
    assert "pairs 5, not 6" in found
    assert "file names" in found
    text = (folder_data / "data.yaml").read_text()
    (folder_data / "data.yaml").write_text(text.replace("hill", "mountain"))
    found = differences(before, data_facts(open_dataset(str(folder_data), "train")))
    assert "classes" in found


def test_resuming_with_other_settings_is_named_and_accepted(folder_data, capsys):
    config = Config()
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    require_same_run("run", facts(folder_data, config), facts(folder_data, longer))
    assert "train.steps 7, not 80000" in capsys.readouterr().err


def test_resuming_with_another_model_is_refused(folder_data):
    config = Config()
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, channels=8))
    with pytest.raises(SetrError, match=r"another model: model\.channels 8, not None") as caught:
        require_same_run("run", facts(folder_data, config), facts(folder_data, other))
    assert caught.value.code == USAGE
