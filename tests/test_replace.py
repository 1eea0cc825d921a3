"""`Config.replace`: settings from Python by the names of the command line's options."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import setr
from setr.commands.train import parsed
from setr.config import Config
from setr.errors import USAGE, SetrError


def test_settings_are_those_of_the_command_line():
    typed = ["--data.root", "photos", "--optim.lr", "1e-3", "--data.crop-size", "64", "96",
             "--train.epochs", "3", "--out", "runs/x", "--eval.multi-scale"]  # fmt: skip
    changes = {
        "data.root": Path("photos"),
        "--optim.lr": np.float64(1e-3),
        "data.crop-size": [64, 96],
        "train.epochs": 3,
        "out": "runs/x",
        "eval.multi_scale": True,
    }
    config = setr.recipe("finetune")
    assert config.replace(changes) == parsed(["finetune", *typed]).config
    assert config == setr.recipe("finetune")
    assert config.replace({}) == config


def test_steps_and_epochs_replace_each_other():
    config = setr.recipe("finetune").replace({"train.epochs": 2.5})
    assert (config.train.steps, config.train.epochs) == (0, 2.5)
    config = config.replace({"train.steps": 7, "train.batch_size": 2})
    assert (config.train.steps, config.train.epochs, config.train.batch_size) == (7, 0, 2)
    assert config.replace({"train.seed": 1}).train.steps == 7
    with pytest.raises(SetrError, match=r"train.steps 3 and train.epochs 2: give one of them"):
        config.replace({"train.steps": 3, "train.epochs": 2})


def test_settings_that_depend_on_each_other_are_changed_together():
    config = setr.recipe("finetune").replace({"eval.window": (64, 64), "eval.stride": (32, 32)})
    assert config.eval.stride == (32, 32)
    optim = dataclasses.replace(config.optim, name="sgd", momentum=0.8)
    assert config.replace({"optim.lr": 0.02, "optim": optim}).optim == dataclasses.replace(
        optim, lr=0.02
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 3}, "epochs: there is no such setting; did you mean train.epochs?"),
        ({"imgsz": 64}, "imgsz: there is no such setting; did you mean data.crop_size?"),
        ({"pretrained": "x"}, "did you mean model.pretrained?"),
        ({"train.batchsize": 3}, "did you mean train.batch_size?"),
        ({"qwerty": 3}, "qwerty: there is no such setting; see `setr train --help`"),
        ({"optim.lr": "fast"}, "optim.lr: 'fast': give a number"),
        ({"optim": 3}, "optim: 3: give a "),
        ({"data.fraction": 0}, "data.fraction 0: give a share above 0"),
    ],
)
def test_what_cannot_be_replaced(changes, told):
    with pytest.raises(SetrError) as caught:
        Config().replace(changes)
    assert told in str(caught.value)
    assert caught.value.code == USAGE
