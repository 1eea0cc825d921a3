"""Names of other toolkits in Python are answered with what is used here."""

from __future__ import annotations

import importlib
import pickle

import numpy as np
import pytest
import torch

import setr
from setr.arguments.elsewhere import (
    ADVICE_HERE,
    COMMANDS_HERE,
    OPTIONS_HERE,
    VALUES_HERE,
)
from setr.arguments.elsewhere_python import NAMES_ELSEWHERE
from setr.arguments.named_values import encoder_arguments
from setr.labels import Labels
from setr.result import Result

OWNERS = {
    "setr": setr,
    "SETR": setr.SETR,
    "Predictor": setr.Predictor,
    "Result": setr.Result,
}


def result(scores=lambda: np.ones((1, 2, 2))) -> Result:
    return Result(
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((2, 2), np.uint8),
        np.ones((2, 2), np.float32),
        Labels(("a",)),
        scores,
    )


@pytest.mark.parametrize("owner", OWNERS)
def test_no_hint_is_at_a_name_that_exists(owner):
    known = {*dir(OWNERS[owner]), *vars(result())}
    assert not known & set(NAMES_ELSEWHERE[owner])


def test_tables_are_in_order():
    tables = (OPTIONS_HERE, ADVICE_HERE, COMMANDS_HERE, VALUES_HERE)
    for table in (*tables, *NAMES_ELSEWHERE.values()):
        assert list(table) == sorted(table)
    for table in tables:
        assert all(names.split() == sorted(names.split()) for names in table.values())


def test_a_name_elsewhere_has_one_meaning():
    for tables in ((OPTIONS_HERE, ADVICE_HERE), (COMMANDS_HERE,), (VALUES_HERE,)):
        names = [name for table in tables for line in table.values() for name in line.split()]
        assert len(names) == len(set(names))


def test_a_name_of_another_toolkit_is_answered():
    with pytest.raises(AttributeError, match=r"module 'setr' has no attribute 'YOLO'; use setr\.l"):
        _ = setr.YOLO
    with pytest.raises(AttributeError, match=r"'Result' has no attribute 'plot'; use result\.over"):
        _ = result().plot
    model = setr.create_model("setr_naive_nano", num_classes=1, img_size=32, channels=8)
    predictor = setr.load(model, info=setr.ModelInfo(labels=Labels(("a",))))
    with pytest.raises(AttributeError, match=r"'Predictor' has no attribute 'val'; use setr\.eval"):
        predictor.val(data="x")
    with pytest.raises(AttributeError, match=r"use setr\.train\(config, trackers=\[…\]\)"):
        predictor.add_callback("on_train_end", print)
    for owner in (model, setr.SETR):
        with pytest.raises(AttributeError, match=r"'save_pretrained'; use setr\.save_pretrained"):
            owner.save_pretrained("x")
        with pytest.raises(AttributeError, match=r"has no attribute 'something'$"):
            _ = owner.something
    with pytest.raises(AttributeError, match=r"'from_pretrained'; use setr\.load\(SOURCE\)"):
        setr.Predictor.from_pretrained("x")


def test_a_name_of_another_toolkit_is_answered_where_it_is_imported(monkeypatch):
    with pytest.raises(ImportError, match=r"import name 'YOLO' from 'setr'; use setr\.load\(MODEL"):
        from setr import YOLO  # noqa: F401
    with pytest.raises(ImportError, match=r"import name 'nothing' from 'setr' \("):
        from setr import nothing  # noqa: F401
    importlib.import_module("setr.losses")
    monkeypatch.delattr(setr, "losses")  # as before its first import
    from setr import losses

    assert losses.__name__ == "setr.losses"
    assert not hasattr(setr, "YOLO")


def test_a_model_that_answers_compiles_whole():
    """torch.compile follows the access of attributes, too."""
    model = setr.create_model("setr_naive_nano", num_classes=2, img_size=32, channels=8).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), model(images))


def test_keywords_of_other_toolkits_are_answered():
    with pytest.raises(TypeError, match=r"no argument 'in_channels'; use in_chans$"):
        setr.create_model("setr_naive_nano", num_classes=1, in_channels=4)
    with pytest.raises(TypeError, match=r"no argument 'classes'; use num_classes$"):
        setr.create_model("setr_naive_nano", classes=1)
    with pytest.raises(setr.SetrError, match=r"is the name of an encoder; give it as encoder"):
        setr.create_model("vit_base_patch16_224.augreg_in21k", num_classes=1)


def test_a_result_is_no_list():
    for read in (lambda r: r[0], list):
        with pytest.raises(
            TypeError, match=r"'Result' is of one image and no list: take result\.m"
        ):
            read(result())


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("epochs", "use setr.recipe(NAME).replace({'train.epochs': …}) as config"),
        ("imgsz", "'data.crop_size'"),
        ("out", "{'out': …}"),
        ("learning_rate", "'optim.lr'"),
    ],
)
def test_settings_given_to_train_are_answered(name, here):
    with pytest.raises(TypeError) as caught:
        setr.train("finetune", data="photos", **{name: 3})
    assert f"train() has no argument '{name}'; use setr.recipe(NAME)" in str(caught.value)
    assert here in str(caught.value)
    with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument 'zzz'"):
        setr.train("finetune", zzz=3)


def test_keywords_that_are_no_settings_are_answered():
    with pytest.raises(TypeError, match=r"'name'; use setr\.recipe\(NAME\)\.replace\(\{'out'"):
        setr.train("finetune", name="exp")  # of the run, not of the model
    with pytest.raises(TypeError, match=r"'exist_ok'; use overwrite=True$"):
        setr.train("finetune", exist_ok=True)
    with pytest.raises(TypeError, match=r"'mosaic'; not built in; .*augment"):
        setr.train("finetune", mosaic=0)
    with pytest.raises(TypeError, match=r"recipe\(\) .*; use setr\.recipe\(NAME\)\.replace"):
        setr.recipe("finetune", epochs=2)
    with pytest.raises(TypeError, match=r"'epochs'; use replace\(\{'train\.epochs': …\}\)$"):
        setr.recipe("finetune").replace(epochs=2)
    with pytest.raises(TypeError, match=r"load\(\) has no argument 'dtype'; use precision$"):
        setr.load("run", dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"'device'; use setr\.load\(MODEL, device='cuda'\) as"):
        setr.evaluate("run", "photos", device=0)
    with pytest.raises(TypeError, match=r"'num_labels'; use setr\.create_model\(NAME, num_cl"):
        setr.from_pretrained("run", num_labels=3)
    with pytest.raises(TypeError, match=r"create_model\(\) has no argument 'drop_rate'; use enc"):
        setr.create_model("setr_naive_nano", num_classes=1, drop_rate=0.1)
    with pytest.raises(setr.SetrError, match=r"^folder: a Sequential: give text or a path$"):
        setr.push_to_hub(torch.nn.Sequential(torch.nn.Linear(1, 1)), "owner/name")


def test_arguments_of_an_encoder_are_a_table_in_settings_too():
    given = {"embed_dim": 64, "global_pool": "avg", "no_embed_class": True}
    config = setr.recipe("finetune").replace({"model.encoder_args": given})
    assert encoder_arguments(config.model.encoder_args, "") == given
    assert setr.Config.from_yaml(config.to_yaml()) == config


def test_options_given_to_predict_are_answered(tmp_path):
    model = setr.create_model("setr_naive_nano", num_classes=1, img_size=32, channels=8)
    predictor = setr.load(model, info=setr.ModelInfo(labels=Labels(("a",))))
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(TypeError, match=r"'conf'; use setr\.load\(MODEL, min_confidence=0\.6\)"):
        predictor.predict(image, conf=0.6)
    with pytest.raises(TypeError, match=r"'stream'; use predict_all"):
        predictor(image, stream=True)
    with pytest.raises(TypeError, match=r"predict_all\(\) got an unexpected .* 'zzz'"):
        predictor.predict_all(image, zzz=True)
    with pytest.raises(setr.SetrError, match=r"is a folder; predict_all takes folders"):
        predictor.predict(tmp_path)


def test_other_names_are_unknown_as_always():
    with pytest.raises(AttributeError, match=r"^module 'setr' has no attribute 'nothing'$"):
        _ = setr.nothing
    with pytest.raises(AttributeError, match=r"^'Result' object has no attribute 'nothing'$"):
        _ = result().nothing
    assert not hasattr(result(), "plot")


def test_errors_inside_an_attribute_stay_what_they_are():
    def broken() -> np.ndarray:
        return [].inside  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="'list' object has no attribute 'inside'"):
        _ = result(broken).scores
    assert pickle.loads(pickle.dumps(result())).shares == {"a": 1.0}
