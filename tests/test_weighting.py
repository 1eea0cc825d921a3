"""Class weights: from pixel counts and by hand, how they are written, and what 0 does to losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import setr.training.run as running
from setr.config import Config, TrainConfig
from setr.engine import train
from setr.errors import USAGE, SetrError
from setr.losses import segmentation_loss
from setr.model import Output
from setr.training.runfolder import RunFolder
from setr.training.weighting import by_class, class_weights, described, named_weights
from tests.conftest import tiny_config


def test_class_weights_from_pixel_counts():
    pixels = np.array([100, 10, 40, 0])
    weights = class_weights(pixels, "auto", limit=100)
    np.testing.assert_allclose(weights, [0.4, 4.0, 1.0, 1.0])
    np.testing.assert_allclose(class_weights(pixels, "sqrt_median_frequency"),
                               [0.4**0.5, 2.0, 1.0, 1.0])  # fmt: skip
    assert class_weights(np.array([1000, 1, 10]), "median_frequency").max() == 4


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("none", {}),
        ("auto", {}),
        ("sky=0.5,pole=4", {"sky": 0.5, "pole": 4}),
        (" sky = 0 , traffic light=2e0,", {"sky": 0, "traffic light": 2}),
        ("wall, brick=2,a=b=3,1,2=4", {"wall, brick": 2, "a=b": 3, "1,2": 4}),
    ],
)
def test_weights_are_read_and_written(text, weights):
    config = Config(train=TrainConfig(class_weights=text))
    assert named_weights(config.train.class_weights) == weights
    assert Config.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("medain_frequency", "did you mean median_frequency"),
        ("sky", "give none, auto, median_frequency, sqrt_median_frequency, or weights as in NAME="),
        ("sky=x", "weights as in NAME="),
        ("=3", "weights as in NAME="),
        ("", "weights as in NAME="),
        ("sky=1,pole", "weights as in NAME="),
        ("sky=-1", "give 0 or more"),
        ("sky=nan", "give 0 or more"),
        ("sky=inf,pole=1", "give 0 or more"),
        ("sky=1,sky=2", "'sky' is named twice"),
    ],
)
def test_what_is_no_weight_is_refused(text, rule):
    with pytest.raises(SetrError, match=rule) as caught:
        TrainConfig(class_weights=text)
    assert str(caught.value).startswith("train.class_weights")
    assert caught.value.code == USAGE


def test_names_are_those_of_the_classes():
    classes = ("road", "Sky", "traffic light")
    assert by_class({"Sky": 0.5}, classes) == [1, 0.5, 1]
    assert described([1, 0.5, 1], classes) == "Sky 0.5; others 1"
    assert described([1, 1, 1], classes) == "all 1"
    for name, hint in (("sky", "'Sky'?"), ("trafic light", "'traffic light'?"),
                       ("qqq", "there are road, Sky, traffic light"),
                       ("road=x,Sky", "write NAME=NUMBER")):  # fmt: skip
        with pytest.raises(SetrError, match="is not a class; ") as caught:
            by_class({name: 2}, classes)
        assert hint in str(caught.value)
    with pytest.raises(SetrError, match="all classes have weight 0"):
        by_class(dict.fromkeys(classes, 0.0), classes)


def test_a_run_says_records_and_uses_them(tmp_path, capsys, monkeypatch):
    text = "sky=0.5,pole=4"
    config = tiny_config(tmp_path / "run", class_weights=text)
    run = running.Run(config, RunFolder(Path(config.out)))
    assert "class weights: sky 0.5, pole 4; others 1" in capsys.readouterr().err
    classes = run.dataset.labels.classes
    expected = [{"sky": 0.5, "pole": 4.0}.get(name, 1.0) for name in classes]
    assert run.updates.weight.tolist() == expected
    assert Config.load(Path(config.out, "config.yaml")).train.class_weights == text
    wrong = tiny_config(tmp_path / "wrong", class_weights="sy=2")
    monkeypatch.setattr(
        "setr.training.pixel_counts.check", lambda *_, **__: pytest.fail("files were read")
    )
    with pytest.raises(SetrError, match=r"train\.class_weights: 'sy' is not a class; .*'sky'"):
        train(wrong)
    assert not Path(wrong.out).exists()


@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "focal", "dice", "lovasz"])
def test_a_class_of_weight_0_teaches_no_cross_entropy_and_breaks_no_loss(kind):
    weight = torch.tensor([0.0, 1.0, 2.0])
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    target = torch.randint(3, (1, 8, 8), dtype=torch.uint8)
    alone = torch.zeros_like(target)
    for truth in (target, alone):
        logits.grad = None
        losses = segmentation_loss(Output(logits, [], (8, 8)), truth, weight=weight, kind=kind)
        losses["loss"].backward()
        assert torch.isfinite(losses["loss"])
        assert torch.isfinite(logits.grad).all()
    assert losses["loss"] == 0  # of `alone`
    assert not logits.grad.any()
