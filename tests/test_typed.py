"""Wrong arguments in Python are one line that names them; right ones may have any form."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import setr
from setr.arguments.typed import checked
from setr.config import Config
from setr.data import scenes
from setr.errors import SetrError
from setr.evaluation import EvaluationOptions, evaluate_split
from setr.export import export
from setr.loading import ForeignOptions, PredictorOptions
from setr.transforms import Augmentation
from setr.weight_files.foreign import convert_foreign
from tests.conftest import tiny_model

FINETUNE = setr.recipe("finetune")


def changed(part, **values):
    """The settings of `finetune` with values of one part replaced."""
    return dataclasses.replace(
        FINETUNE, **{part: dataclasses.replace(getattr(FINETUNE, part), **values)}
    )


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("data", {"crop_size": [448, 320], "scale_range": np.array([1, 2])}),
        ("data", {"root": Path("photos"), "short_side": np.int64(512)}),
        ("optim", {"lr": np.float32(0.5), "min_lr": 0}),
        ("optim", {"lr": np.float64(1e-3), "clip_grad": torch.tensor(2)}),
        ("model", {"pretrained": Path("weights.pth"), "taps": [3, 6], "mean": [0, 0, 0.5]}),
        ("train", {"steps": np.int32(7), "compile": np.bool_(True)}),
        ("eval", {"window": [64, 64], "stride": np.array([32, 32])}),
        ("distill", {"teacher": Path("runs/large")}),
    ],
)
def test_settings_take_what_python_has_and_can_be_written(part, values):
    config = changed(part, **values)
    assert Config.from_yaml(config.to_yaml()) == config
    assert not isinstance(config.optim.lr, np.floating)


@pytest.mark.parametrize(
    ("part", "name", "value", "rule"),
    [
        ("data", "crop_size", 448, "give two whole numbers"),
        ("data", "crop_size", (448.5, 448), "give two whole numbers"),
        ("data", "short_side", "512", "give a whole number"),
        ("data", "workers", None, "give a whole number"),
        ("data", "photometric", 1, "give true or false"),
        ("train", "loss", "focall", "give one of cross_entropy, ohem, focal"),
        ("train", "steps", 1e3, "give a whole number"),
        ("train", "log", ("wandb",), "give text"),
        ("train", "class_weights", {"sky": 2}, "give text"),
        ("model", "img_size", (512, 512), "give a whole number"),
        ("eval", "window", 512, "give two whole numbers"),
        ("optim", "name", "adam", "give one of sgd, adamw"),
        ("optim", "lr", True, "give a number"),
        ("optim", "lr", "inf", "give a number"),
        ("data", "crop_size", (448, 448, 3), "give two whole numbers"),
    ],
)
def test_a_wrong_setting_is_named_when_it_is_made(part, name, value, rule):
    with pytest.raises(SetrError, match=rf"^{part}\.{name}: .*: {rule}"):
        changed(part, **{name: value})


def test_a_part_of_the_settings_is_no_value():
    with pytest.raises(SetrError, match=r"^data: 'photos': give a setr\.config\.DataConfig$"):
        dataclasses.replace(FINETUNE, data="photos")


def test_labels_take_names_and_numbers_of_numpy():
    labels = setr.Labels(
        ("road", "car"),
        ("#010203", np.array([4, 5, 6], np.uint8)),
        {np.uint8(7): "road", "8": np.int64(1), 9: "ignore"},
    )
    assert labels.label_map == {7: 0, 8: 1, 9: 255}
    assert json.loads(json.dumps(labels.to_dict()))["colours"] == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(SetrError, match=r"colour \(0\.5, 0\.5, 1\.0\): give \[red, green, blue\]"):
        setr.Labels(("road",), ((0.5, 0.5, 1.0),))
    with pytest.raises(SetrError, match=r"labels list 'ignore'.*\{1: 'ignore', …\}"):
        setr.wrap_dataset([0], ["road", "ignore"], "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: setr.Protocol(window=512), "window: 512: give two whole numbers"),  # type: ignore[arg-type]
        (lambda: setr.Bands(4), "numbers: 4: give whole numbers"),  # type: ignore[arg-type]
        (lambda: setr.Bands((1,), (0, 9)), r"ranges: \[0, 9\]: give tuples of two numbers"),  # type: ignore[arg-type]
        (lambda: setr.create_model("setr_pup_nano", num_classes="3"), "num_classes: '3': give a"),  # type: ignore[arg-type]
        (lambda: setr.create_model("setr_pup_nano", num_classes=3, taps=6), "taps: 6: give whole"),  # type: ignore[arg-type]
        (
            lambda: setr.create_model("setr_pup_nano", num_classes=3, img_size="96"),  # type: ignore[arg-type]
            "img_size: '96': give a whole number or two whole numbers",
        ),
        (lambda: Augmentation(crop_size=64), "crop_size: 64: give two whole numbers"),  # type: ignore[arg-type]
        (
            lambda: export("runs/mine", None, "m.onnx", format="onnx"),  # type: ignore[arg-type]
            r"model: 'runs/mine': give a setr\.model\.SETR",
        ),
        (lambda: setr.recipe(None), "name: None: give text"),  # type: ignore[arg-type]
        (lambda: setr.open_dataset(None, "train"), "path: None: give text or a path"),  # type: ignore[arg-type]
        (lambda: setr.from_pretrained(3), "source: 3: give text or a path"),  # type: ignore[arg-type]
        (lambda: setr.train("demo", trackers=setr.Tracker), "trackers .*: give a list of subcl"),  # type: ignore[arg-type]
        (lambda: setr.train("demo", trackers=["wandb"]), r"trackers \['wandb'\]: give a list"),  # type: ignore[list-item]
    ],
)
def test_a_wrong_argument_is_one_line(make, message):
    with pytest.raises(SetrError, match=f"^{message}") as caught:
        make()
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "512"}, "window: '512': give a whole number"),
        ({"scales": 1.5}, "scales: 1.5: give numbers"),
        ({"scales": "1,2"}, "scales: '1,2': give numbers"),
        ({"bands": (0, 1, 2)}, "numbers from 1"),
        ({"value_range": 3000}, "value_range: 3000: give two numbers"),
        ({"max_pixels": "10"}, "max_pixels: '10': give a whole number"),
        ({"info": setr.Labels(("a", "b"))}, "info=, not Labels"),
    ],
)
def test_a_predictor_refuses_what_it_could_not_use_later(options, message):
    info = setr.ModelInfo(labels=scenes.LABELS)
    with pytest.raises(SetrError, match=message):
        setr.load(tiny_model(num_classes=9), **{"info": info, **options})


def test_options_are_typed_and_refused_before_anything_opens():
    own = set(inspect.signature(setr.Predictor).parameters) - {"model", "info", "device"}
    assert set(PredictorOptions.__annotations__) == own
    foreign = set(inspect.signature(convert_foreign).parameters) - {"path"}
    assert set(ForeignOptions.__annotations__) == foreign
    with pytest.raises(TypeError, match=r"load\(\) has no option 'scale'; did you mean scales\?"):
        setr.load("no such model", scale=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no option 'tiles'; give precision, max_pixels"):
        setr.load("no such model", tiles=2)  # type: ignore[call-arg]
    inside = {"model", "info", "dataset", "loss", "measure"}  # of training; of reviews
    tested = set(inspect.signature(evaluate_split).parameters) - inside
    assert set(EvaluationOptions.__annotations__) == tested
    with pytest.raises(
        TypeError, match=r"evaluate\(\) has no option 'multi_scale'; give precision"
    ):
        setr.evaluate("no such model", "scenes", multi_scale=True)  # type: ignore[call-arg]


def test_arguments_are_converted_and_signatures_stay():
    @checked
    def area(size: tuple[int, int], *, scale: float = 1.0, **others: int) -> object:
        return size, scale, others

    assert area([3, 4], scale=2, more="as given") == ((3, 4), 2.0, {"more": "as given"})
    with pytest.raises(TypeError, match=r"area\(\) missing 1 required positional argument: 'size'"):
        area()  # type: ignore[call-arg]
    assert list(inspect.signature(setr.create_model).parameters)[:2] == ["name", "num_classes"]


@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 16), (3, 16, 16), (1, 16, 16, 3), (0, 3, 16, 16), (1, 3, 0, 16)]
)
def test_a_model_names_the_images_that_it_takes(shape):
    model = tiny_model()
    for call in (model, model.coarse):
        with pytest.raises(SetrError, match=r"^images \(.*: give normalised floats \(B, 3, H, W\)"):
            call(torch.zeros(shape))
    with pytest.raises(SetrError, match=r"torch\.uint8: give normalised"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
