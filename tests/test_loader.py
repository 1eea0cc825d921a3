"""Batches depend on (seed, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from setr.datasets import open_dataset
from setr.errors import SetrError
from setr.loader import BatchOrder, training_batches, whole_images
from setr.transforms import Augmentation


def test_every_sample_once_an_epoch_and_a_new_order_each():
    order = list(BatchOrder(10, 4, seed=3, start=0, stop=5))
    flat = [position for batch in order for position in batch]
    assert [e for e, _ in flat] == [0] * 10 + [1] * 10
    first, second = [i for _, i in flat[:10]], [i for _, i in flat[10:]]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_starting_late_gives_the_same_batches():
    whole = list(BatchOrder(7, 3, seed=0, start=0, stop=9))
    assert list(BatchOrder(7, 3, seed=0, start=4, stop=9)) == whole[4:]


def batches(workers: int, start: int = 0):
    dataset = open_dataset("scenes:6", "train")
    augment = Augmentation(crop_size=(48, 40))
    return [
        (images.clone(), masks.clone())
        for images, masks in training_batches(
            dataset, augment, batch_size=2, seed=5, start=start, stop=4, workers=workers
        )
    ]


def test_workers_and_resumption_change_nothing():
    torch.manual_seed(0)
    alone, helped, late = batches(0), batches(2), batches(0, start=2)
    for (a, b), (c, d) in zip(alone, helped, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert torch.equal(alone[2][0], late[0][0])
    assert alone[0][0].shape == (2, 48, 40, 3)
    assert alone[0][0].dtype == torch.uint8


def test_making_a_loader_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    batches(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_line_from_a_worker_too(folder_data, workers):
    path = folder_data / "images" / "val" / "scene_001.png"
    path.write_bytes(path.read_bytes()[:50])
    dataset = open_dataset(str(folder_data), "val")
    with pytest.raises(SetrError, match=r"scene_001\.png: broken image file") as caught:
        list(
            training_batches(
                dataset,
                Augmentation((8, 8)),
                batch_size=3,
                seed=0,
                start=0,
                stop=1,
                workers=workers,
            )
        )
    assert "\n" not in str(caught.value)


def test_whole_images_come_in_order(folder_data):
    dataset = open_dataset(str(folder_data), "val")
    for i, batch in enumerate(whole_images(dataset, 0, range(3))):
        sample = dataset.load(i)
        assert not isinstance(batch, SetrError)
        images, masks = batch
        np.testing.assert_array_equal(images[0], sample.image)
        np.testing.assert_array_equal(masks[0], sample.mask)
    assert i == 2
