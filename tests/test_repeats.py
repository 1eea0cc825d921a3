"""Images with rare classes are repeated: by the published rule, the same in every process."""

from __future__ import annotations

import numpy as np
import pytest

import setr
from setr.cli import main
from setr.doctor import check
from setr.engine import train
from setr.errors import OK, USAGE, SetrError
from setr.images import encode_png
from setr.training.repeats import repeat_counts, with_repeats
from setr.writing import write_bytes
from tests.conftest import tiny_config

CLASSES = ("ground", "road", "car", "boat")


def dataset(count: int = 40):
    """Ground everywhere, a road in every second image, a car in one of ten, no boat."""
    samples = []
    for i in range(count):
        mask = np.zeros((16, 16), np.uint8)
        mask[0] = i % 2
        mask[1] = 2 * (i % 10 == 0)
        samples.append((np.full((16, 16, 3), i, np.uint8), mask))
    return setr.wrap_dataset(samples, CLASSES, "train")


def counts(threshold: float, seed: int = 0, whole=None) -> np.ndarray:
    whole = whole or dataset()
    return repeat_counts(check(whole).survey, len(CLASSES), threshold, seed)


def test_an_image_is_repeated_as_its_rarest_class_says():
    rare = np.arange(40) % 10 == 0
    found = counts(0.4)  # cars: sqrt(0.4 / 0.1) = 2; roads are in half of the images
    assert (found[rare] == 2).all()
    assert (found[~rare] == 1).all()
    assert (counts(0.1) == 1).all()
    several = np.mean([counts(0.9, seed) for seed in range(200)], axis=0)
    np.testing.assert_allclose(several[rare], 3, atol=0.01)
    odd = np.arange(40) % 2 == 1  # sqrt(0.9 / 0.5) = 1.34: drawn, right on average
    np.testing.assert_allclose(several[odd].mean(), np.sqrt(1.8), atol=0.02)


def test_the_split_with_repeats(tmp_path, capsys):
    whole = dataset()
    config = tiny_config(tmp_path / "run").replace({"data.repeat_rare": 0.4})
    repeated = with_repeats(config, whole)
    assert len(repeated) == 44
    assert "4 of 40 images are repeated, up to 2 times: 44 in an epoch" in capsys.readouterr().err
    assert [int(repeated.load(i).image[0, 0, 0]) for i in range(4)] == [0, 0, 1, 2]
    assert with_repeats(config.replace({"data.repeat_rare": 0}), whole) is whole
    assert with_repeats(config.replace({"data.repeat_rare": 0.05}), whole) is whole
    assert "every class is frequent enough; no image is repeated" in capsys.readouterr().err


def test_a_run_with_repeats(tmp_path):
    val = setr.wrap_dataset([dataset()[i] for i in range(10)], CLASSES, "val")
    config = tiny_config(tmp_path / "run").replace(
        {"data.repeat_rare": 0.4, "data.crop_size": (16, 16), "train.epochs": 1}
    )
    whole = setr.wrap_dataset(dataset(), CLASSES, "train", version="1")
    metrics = train(config.replace({"train.batch_size": 11}), data=(whole, val))
    assert (metrics["data"]["train_images"], metrics["steps"]) == (44, 4)


def test_unusable_pairs_are_reported_by_the_check_of_the_data(folder_data, tmp_path):
    write_bytes(
        folder_data / "labels" / "train" / "scene_001.png", encode_png(np.zeros((3, 3), np.uint8))
    )
    config = tiny_config(tmp_path / "run")
    config = config.replace({"data.root": str(folder_data), "data.repeat_rare": 0.5})
    with pytest.raises(SetrError, match="1 of 6 pairs of split 'train' are unusable"):
        train(config)


def test_shards_are_refused_before_they_are_read(folder_data, tmp_path):
    assert main(["shard", str(folder_data), str(tmp_path / "shards")]) == OK
    config = tiny_config(tmp_path / "run")
    config = config.replace({"data.root": str(tmp_path / "shards"), "data.repeat_rare": 0.5})
    with pytest.raises(SetrError, match="shards are read in sequence") as caught:
        train(config)
    assert caught.value.code == USAGE
