"""The embedded data set: determinism, classes, separate splits."""

from __future__ import annotations

import numpy as np

from setr.data import scenes
from setr.labels import IGNORE


def test_a_scene_depends_on_split_and_index_alone():
    first, again = scenes.draw("train", 3), scenes.draw("train", 3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (scenes.draw("val", 3)[0] != first[0]).any()
    assert (scenes.draw("train", 4)[0] != first[0]).any()


def test_every_class_occurs_and_borders_are_ignored():
    masks = np.stack([scenes.draw("val", i)[1] for i in range(30)])
    counts = np.bincount(masks.ravel(), minlength=256)
    assert (counts[: len(scenes.CLASSES)] > 0.005 * masks.size).all()
    assert 0 < counts[IGNORE] < 0.15 * masks.size
    assert counts[len(scenes.CLASSES) : IGNORE].sum() == 0


def test_any_size():
    image, mask = scenes.draw("x", 0, size=48)
    assert image.shape == (48, 48, 3)
    assert mask.shape == (48, 48)
    assert image.dtype == mask.dtype == np.uint8
