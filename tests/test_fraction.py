"""Training on a part of a split, of every kind of data set, and folders that are named twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

import setr
from setr.cli import main
from setr.data.sampling import evenly_spaced
from setr.datasets import open_dataset
from setr.doctor import check
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


def test_parts_are_splits_of_their_own(folder_data, tmp_path):
    """Folds: parts of one split with different names."""
    files, scenes = open_dataset(folder_data, "train"), open_dataset("scenes:6", "train")
    own = setr.wrap_dataset([scenes[i] for i in range(6)], scenes.labels, "train", version="1")
    fold_of = np.array([0, 1, 0, 1, 0, 0])
    for number, whole in enumerate((files, scenes, own)):
        rest, fold = whole.part(np.flatnonzero(fold_of == 0)), whole.part([1, 3], "val")
        assert (rest.split, fold.split, whole.split) == ("train", "val", "train")
        same(fold, whole, [1, 3])
        config = tiny_config(tmp_path / f"run{number}", steps=1)
        metrics = train(config, data=(rest, fold))
        assert (metrics["data"]["train_images"], metrics["data"]["val_images"]) == (4, 2)
        with pytest.raises(SetrError, match="cannot resume with other data"):
            train(config, data=(rest, whole.part([1, 2], "val")), resume=True)


def test_what_was_read_of_a_drawn_scene_is_not_taken_for_another():
    """A check remembers masks; the first of a part is another scene than the first of all."""
    whole = open_dataset("scenes:6", "train")
    check(whole)
    for part in (whole.part([4]), whole.part([4], "val")):
        counted = np.bincount(whole.load(4).mask[whole.load(4).mask < 9], minlength=9)
        np.testing.assert_array_equal(check(part).pixels, counted)


@pytest.mark.parametrize(
    ("indices", "told"),
    [
        ([], "indices float64 of shape (0,): give a list of whole numbers"),
        ([0.0, 1.0], "indices float64 of shape (2,): give a list of whole numbers"),
        ([True] * 6, "indices bool of shape (6,): give a list of whole numbers, one or more (np."),
        ([[0, 1]], "indices int64 of shape (1, 2): give a list"),
        ([0, 6], "index 6: split 'train' of scenes has 0 to 5"),
        ([-1, 5], "index -1: split 'train' of scenes has 0 to 5"),
    ],
)
def test_indices_that_are_none_of_a_part(indices, told):
    with pytest.raises(SetrError) as caught:
        open_dataset("scenes:6", "train").part(indices)
    assert str(caught.value).startswith(told)
    assert caught.value.code == USAGE


def test_opened_data_sets_go_into_torchs_loader():
    whole = open_dataset("scenes:4", "train")
    loader = DataLoader(ConcatDataset([whole, Subset(whole, [3, 1])]), batch_size=3)
    images = torch.cat([batch.image for batch in loader])
    assert images.shape[0] == 6
    np.testing.assert_array_equal(images[5].numpy(), whole.load(1).image)


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
