"""Overlays and polygons of some classes only, from Python and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import setr
from setr.cli import main
from setr.errors import OK, USAGE, SetrError
from setr.images import encode_png, read_image
from setr.labels import Labels
from setr.prediction.kinds import KINDS, OPTIONS, POLYGON_KINDS
from setr.result import Result
from setr.writing import write_bytes

LABELS = Labels(("ground", "road", "car"))


@pytest.fixture
def result() -> Result:
    """Ground with a road, a car in it, and a pixel without a class."""
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 1:5] = 1
    mask[2, 2] = 2
    mask[5, 7] = 255
    photo = np.full((6, 8, 3), 90, np.uint8)
    return Result(photo, mask, np.ones((6, 8), np.float32), LABELS, lambda: np.ones((3, 6, 8)))


def test_polygons_of_some_classes(result):
    def found(**options: object) -> list[tuple[int, int]]:
        return [(p.class_id, p.pixels) for p in result.polygons(**options)]  # type: ignore[arg-type]

    assert found(classes=["car"]) == [(2, 1)]
    assert found(classes=("road", "car")) == [(1, 15), (2, 1)]
    assert found(classes=["road"], min_pixels=16) == []
    assert found() == [(0, 31), (1, 15), (2, 1)]
    assert found(classes=["ground"]) == [(0, 31)]


def test_every_kind_of_polygons_has_the_option(result, tmp_path):
    assert {kind for kind, options in OPTIONS.items() if "classes" in options} == {
        "overlay", *POLYGON_KINDS
    }  # fmt: skip
    (feature,) = result.geojson(classes=["car"])["features"]
    assert feature["properties"]["class"] == "car"
    coco = result.coco(classes=["road"], tolerance=1)
    assert [a["category_id"] for a in coco["annotations"]] == [2]
    assert len(coco["categories"]) == 3
    assert [s["label"] for s in result.labelme(classes=["road"])["shapes"]] == ["road"]
    result.save(tmp_path / "x.geojson", "geojson", classes=["car"])
    assert len(json.loads((tmp_path / "x.geojson").read_text())["features"]) == 1


def test_an_overlay_of_some_classes_leaves_the_image_elsewhere(result):
    picture = result.overlay(1.0, classes=["road"])
    is_road = result.mask == 1
    assert (picture[is_road] == LABELS.colours[1]).all()
    assert (picture[~is_road] == 90).all()  # also where no class is known, which is black else
    assert (result.overlay(1.0)[5, 7] == 0).all()


@pytest.mark.parametrize("give", ["polygons", "overlay", "geojson"])
def test_a_class_that_the_model_lacks(result, give):
    with pytest.raises(SetrError, match=r"classes 'raod': .*; did you mean 'road'") as caught:
        getattr(result, give)(classes=["raod"])
    assert caught.value.code == USAGE
    with pytest.raises(SetrError, match="the model has ground, road, car"):
        getattr(result, give)(classes=["x"])
    with pytest.raises(SetrError, match="classes: 'road': give a list of texts"):
        getattr(result, give)(classes="road")


def test_masks_have_no_such_option(result, tmp_path):
    with pytest.raises(TypeError, match="has no option 'classes'"):
        result.save(tmp_path / "x.png", "mask", classes=["road"])


def test_some_classes_on_the_command_line(tmp_path, tiny_model, capsys):
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    write_bytes(photo, encode_png(image))
    whole = setr.load(tiny_model).predict(photo)
    common = next(iter(whole.shares))
    given = ["predict", str(tiny_model), str(photo), "-o", str(out), "--save", "geojson,overlay"]
    assert main([*given, "--classes", common]) == OK
    features = json.loads((out / "photo.geojson").read_text())["features"]
    assert {f["properties"]["class"] for f in features} == {common}
    overlay = read_image(out / "photo_overlay.png")
    np.testing.assert_array_equal(overlay, whole.overlay(classes=[common]))
    assert main(given) == OK  # another setting: done again
    np.testing.assert_array_equal(read_image(out / "photo_overlay.png"), whole.overlay())
    capsys.readouterr()
    assert main([*given, "--classes", "nothing"]) == USAGE
    assert "classes 'nothing': is not a class of the model" in capsys.readouterr().err
    assert main([*given[:-1], "mask", "--classes", common]) == USAGE
    assert "changes no mask; add --save with one of coco" in capsys.readouterr().err
    assert set(KINDS) > {"overlay"}


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    labels = Labels(("a", "b", "c"))
    model = setr.create_model("setr_naive_nano", num_classes=3, img_size=32, channels=8)
    setr.save_pretrained(tmp_path / "model", model, setr.ModelInfo(labels=labels))
    return tmp_path / "model"
