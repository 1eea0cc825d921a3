"""How a file of mmsegmentation tests and normalises, read from the configuration inside it."""

from __future__ import annotations

import pytest

from setr.labels import Labels, known_labels
from setr.protocols import Protocol, preset
from setr.weight_files.naming import Translation
from setr.weight_files.published import Settings, published_settings

VERSION_1 = """
data_preprocessor = dict(mean=[51, 102.0, 127.5], std=[25.5, 51.0, 102], bgr_to_rgb=True,
    type='SegDataPreProcessor')
model = dict(
    backbone=dict(num_heads=4, type='VisionTransformer'),
    test_cfg=dict(crop_size=(
        640,
        320,
    ), mode='slide', stride=(
        426,
        213,
    )),
    type='EncoderDecoder')
test_cfg = dict(type='TestLoop')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(
        2560,
        640,
    ), type='Resize'),
    dict(type='PackSegInputs'),
]
"""
VERSION_0 = """
img_norm_cfg = dict(mean=[51, 102.0, 127.5], std=[25.5, 51.0, 102], to_rgb=True)
model = dict(test_cfg=dict(mode='whole'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2560, 640), flip=False,
         transforms=[dict(type='Resize', keep_ratio=True), dict(type='RandomFlip')])]
"""
MEAN, STD = (0.2, 0.4, 0.5), (0.1, 0.2, 0.4)


def settings(text: str, labels: Labels, **more: str) -> Settings:
    found = Translation("mmseg", {}, whole=True)
    arguments = {"decoder": "pup", "img_size": 512}
    return published_settings(found, {"cfg": text, **more}, arguments, labels)


@pytest.mark.parametrize("labels", [known_labels("ade20k"), Labels(("a", "b"))])
@pytest.mark.parametrize(
    ("text", "window", "stride"),
    [(VERSION_1, (640, 320), (426, 213)), (VERSION_0, None, None)],
)
def test_its_own_test_and_normalisation_are_read(text, window, stride, labels):
    found = settings(text, labels)
    expected = Protocol(window=window, stride=stride, short_side=640, long_side=2560)
    assert found.protocol == expected
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model = dict(",
        "model = open('x')\ntest_pipeline = f()",
        "model = dict(test_cfg=dict(mode='slide'))",
        "model = dict(test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(99, 99)))",
        "test_pipeline = [dict(type='Resize', keep_ratio=True)]",
        "data_preprocessor = dict(mean=[1], std=[0])",
        "a = " + "[" * 5000 + "]" * 5000,
    ],
)
def test_a_configuration_that_says_nothing_leaves_the_published_test(text):
    labels = known_labels("ade20k")
    found = settings(text, labels)
    assert found.protocol == preset("mmseg-ss", labels=labels, grid=(512, 512))
    assert found.mean == (0.485, 0.456, 0.406)
