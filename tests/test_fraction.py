"""Training on a part of a split, of every kind of data set, and folders that are named twice."""

from __future__ import annotations

import numpy as np
import pytest

import setr
from setr.cli import main
from setr.data.sampling import evenly_spaced
from setr.datasets import open_dataset
from setr.engine import train
from setr.errors import OK, USAGE, SetrError
from setr.training.splits import trained_part
from tests.conftest import tiny_config, write_scene_folders


def same(part, whole, indices: list[int]) -> None:
    assert len(part) == len(indices)
    for place, index in enumerate(indices):
        for ours, theirs in zip(part.load(place), whole.load(index), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_part_of_each_kind_of_data_set(folder_data):
    files, scenes = open_dataset(folder_data, "train"), open_dataset("scenes:6", "train")
    own = setr.wrap_dataset([scenes[i] for i in range(6)], scenes.labels, "train", version="1")
    for whole in (files, scenes, own):
        part = trained_part(whole, 0.5)
        same(part, whole, evenly_spaced(6, 3))
        same(part.part([2, 0]), part, [2, 0])
        assert part.labels == whole.labels
        assert trained_part(whole, 1.0) is whole
        assert len(trained_part(whole, 0.01)) == 1
    assert trained_part(own, 0.5).version != own.version
    assert trained_part(files, 0.5).image_name(1) == files.image_name(evenly_spaced(6, 3)[1])


def test_a_part_of_several_folders(folder_data):
    (folder_data / "data.yaml").write_text(
        (folder_data / "data.yaml").read_text() + "train: [images/val, images/train]\n"
    )
    whole = open_dataset(folder_data, "train")
    same(whole.part([1, 4, 8]), whole, [1, 4, 8])


def test_shards_have_no_parts(folder_data, tmp_path):
    assert main(["shard", str(folder_data), str(tmp_path / "shards")]) == OK
    with pytest.raises(SetrError, match="shards are read in sequence") as caught:
        trained_part(open_dataset(tmp_path / "shards", "train"), 0.5)
    assert caught.value.code == USAGE


def test_a_run_on_a_part(folder_data, tmp_path):
    config = tiny_config(tmp_path / "run")
    config = config.replace({"data.root": str(folder_data), "data.fraction": 0.5})
    config = config.replace({"train.epochs": 2, "train.batch_size": 3, "train.eval_every": 0})
    metrics = train(config)
    assert (metrics["data"]["train_images"], metrics["data"]["val_images"]) == (3, 3)
    assert metrics["steps"] == 2
    with pytest.raises(SetrError, match="cannot resume with other data"):
        train(config.replace({"data.fraction": 1, "train.steps": 4}), resume=True)


def test_a_folder_that_is_named_twice_is_seen_twice(tmp_path):
    write_scene_folders(tmp_path, {"train": 3, "rare": 1, "val": 2})
    file = tmp_path / "data.yaml"
    file.write_text(file.read_text() + "train: [images/train, images/rare, images/rare]\n")
    dataset = open_dataset(tmp_path, "train")
    assert [dataset.image_name(i).split("/")[1] for i in range(5)] == ["train"] * 3 + ["rare"] * 2
    config = tiny_config(tmp_path / "run").replace({"data.root": str(tmp_path)})
    assert train(config)["data"]["train_images"] == 5
