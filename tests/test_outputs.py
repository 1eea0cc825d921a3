"""Files of a result: kinds, names, what they hold."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr.data import scenes
from setr.errors import USAGE, SetrError
from setr.images import read_image
from setr.prediction import kinds, polygons
from setr.prediction.outputs import parse_kinds, with_ending, write
from setr.prediction.shares import unlabel
from setr.reading.masks import read_mask
from setr.result import Result

KINDS = dict(kinds.KINDS)
if importlib.util.find_spec("pyogrio") is None:
    del KINDS["gpkg"]  # needs the extra `geo`


@pytest.fixture(scope="module")
def result() -> Result:
    image, mask = scenes.draw("photo", 3, size=64)
    mask[mask == 255] = 0
    confidence = np.linspace(0, 1, mask.size, dtype=np.float32).reshape(mask.shape)
    scores = np.eye(len(scenes.CLASSES), dtype=np.float32)[mask].transpose(2, 0, 1)
    return Result(image, mask, confidence, scenes.LABELS, lambda: scores, path="in/photo.jpg")


def test_small_regions_are_left_out_before_polygons_are_made(monkeypatch):
    mask = np.random.default_rng(0).integers(0, 3, (60, 60)).astype(np.uint8)
    mask[10:30, 10:40] = 1
    drawn, rings = [], polygons._rings
    monkeypatch.setattr(polygons, "_rings", lambda region: drawn.append(1) or rings(region))

    def fresh() -> Result:
        return Result(np.zeros((60, 60, 3), np.uint8), mask, mask / 3, scenes.LABELS, mask.copy)

    every = fresh().polygons()
    assert len(drawn) == len(every)
    result = fresh()
    for least in (20, 200, 5):  # also after larger ones only were asked for
        drawn.clear()
        found = result.polygons(min_pixels=least)
        expected = [p for p in every if p.pixels >= least]
        assert len(drawn) == (0 if least == 200 else len(found))
        plain = [[(p.class_id, p.pixels, p.box) for p in part] for part in (found, expected)]
        assert plain[0] == plain[1]
        for mine, theirs in zip(found, expected, strict=True):
            for a, b in zip(mine.rings, theirs.rings, strict=True):
                np.testing.assert_array_equal(a, b)


def test_every_kind_is_written_and_says_the_same(result, tmp_path):
    files = dict(zip(KINDS, write(result, tmp_path / "deep" / "photo", KINDS), strict=True))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == sorted(
        p.name for p in files.values()
    )
    assert len(set(files.values())) == len(KINDS)
    for kind in ("mask", "ids"):
        np.testing.assert_array_equal(read_mask(files[kind]), result.mask)
    with Image.open(files["mask"]) as picture, Image.open(files["ids"]) as grey:
        assert (picture.mode, grey.mode) == ("P", "L")
    np.testing.assert_array_equal(read_image(files["mask"]), result.color())
    np.testing.assert_array_equal(read_image(files["color"]), result.color())
    np.testing.assert_array_equal(read_image(files["overlay"]), result.overlay())
    np.testing.assert_allclose(read_mask(files["confidence"]) / 255, result.confidence, atol=0.002)
    np.testing.assert_array_equal(np.load(files["scores"])["scores"].argmax(axis=0), result.mask)
    share = json.loads(files["share"].read_text())
    assert share["shares"] == result.shares
    assert sum(share["pixels"].values()) == result.mask.size
    assert share["mean_confidence"] == pytest.approx(0.5, abs=1e-3)
    regions = len(result.polygons())
    assert len(json.loads(files["geojson"].read_text())["features"]) == regions
    coco = json.loads(files["coco"].read_text())
    assert len(coco["annotations"]) == regions
    assert coco["images"][0]["file_name"] == "photo.jpg"
    labelme = json.loads(files["labelme"].read_text())
    assert len(labelme["shapes"]) == regions
    image = (files["labelme"].parent / labelme["imagePath"]).resolve()
    assert image == Path("in/photo.jpg").resolve()


def test_unsure_pixels_are_unlabelled_in_every_kind(result, tmp_path):
    unsure = result.confidence < 0.25
    found = result.with_min_confidence(0.25)
    assert (result.mask != 255).all()
    np.testing.assert_array_equal(found.mask, np.where(unsure, 255, result.mask))
    files = dict(zip(KINDS, write(found, tmp_path / "photo", KINDS), strict=True))
    for kind in ("mask", "ids"):
        np.testing.assert_array_equal(read_mask(files[kind]), found.mask)
    assert (read_image(files["color"])[unsure] == 0).all()
    np.testing.assert_array_equal(np.load(files["scores"])["scores"].argmax(axis=0), result.mask)
    share = json.loads(files["share"].read_text())
    assert (share["min_confidence"], share["unlabelled"]) == (0.25, unsure.mean())
    assert sum(share["shares"].values()) + share["unlabelled"] == pytest.approx(1)
    assert f", unlabelled {unsure.mean():.0%}>" in repr(found)
    labelled = (~unsure).sum()
    for kind in ("coco", "coco_rle"):
        coco = json.loads(files[kind].read_text())
        assert sum(a["area"] for a in coco["annotations"]) == labelled
    geojson = json.loads(files["geojson"].read_text())
    assert sum(f["properties"]["pixels"] for f in geojson["features"]) == labelled
    again = found.with_min_confidence(0.5)
    np.testing.assert_array_equal(again.mask, result.with_min_confidence(0.5).mask)
    assert again.shares == result.with_min_confidence(0.5).shares
    nothing = Result(result.image, result.mask, result.confidence / 2, result.labels, list)
    nothing = nothing.with_min_confidence(1)
    assert (nothing.shares, nothing.share()["unlabelled"]) == ({}, 1)
    assert nothing._repr_png_()
    write(nothing, tmp_path / "nothing", [kind for kind in KINDS if kind != "scores"])
    for wrong in (50, -0.1, float("nan")):
        with pytest.raises(SetrError, match="give 0 to 1"):
            result.with_min_confidence(wrong)


def test_options_reach_the_polygons(result, tmp_path):
    write(result, tmp_path / "a", ("mask", "geojson"), tolerance=2.0, min_pixels=50)
    found = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert min(f["properties"]["pixels"] for f in found) >= 50
    points = sum(len(ring) for f in found for ring in f["geometry"]["coordinates"])
    exact = sum(len(ring) for p in result.polygons(min_pixels=50) for ring in p.rings)
    assert points < exact


def test_kinds_on_the_command_line():
    assert parse_kinds("mask, palette,coco") == ("mask", "coco")
    for wrong in ("mask,pictures", ""):
        with pytest.raises(SetrError, match="choose from mask, ids") as caught:
            parse_kinds(wrong)
        assert caught.value.code == USAGE


def test_names_that_grow_too_long_are_cut_and_stay_apart(result, tmp_path):
    for letter in ("a", "é", "日"):
        stem = (letter * 251).encode()[:251].decode(errors="ignore")
        other = stem[:-1] + "z"
        names = {with_ending(Path(s), end).name for s in (stem, other) for end in KINDS.values()}
        assert len(names) == 2 * len(KINDS)
        assert max(len(name.encode()) for name in names) <= 255
        assert stem + ".png" in names
        written = write(result, tmp_path / stem, ("mask", "overlay", "share"))
        assert [path.is_file() for path in written] == [True] * 3


def test_a_folder_that_cannot_be_made_is_named(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetrError, match="file: cannot make this folder"):
        write(result, tmp_path / "file" / "a", ("mask",))


def test_a_notebook_shows_overlay_legend_and_shares(result):
    page = result._repr_html_()
    assert "data:image/png" in page
    assert f'alt="overlay: {next(iter(result.shares))} ' in page
    for name, share in result.shares.items():
        assert f"{name} {share:.1%}" in page
    with Image.open(io.BytesIO(result._repr_png_())) as picture:
        assert picture.width == 64
        assert picture.height > 64  # the legend below
        colours = {c[1] for c in picture.convert("RGB").getcolors(1 << 20)}
    shown = scenes.LABELS.classes.index(next(iter(result.shares)))
    assert tuple(scenes.LABELS.colours[shown]) in colours
    image = np.zeros((40, 2000, 3), np.uint8)
    wide = Result(
        image, image[..., 0], np.ones((40, 2000), np.float32), scenes.LABELS, lambda: image
    )
    with Image.open(io.BytesIO(wide._repr_png_())) as picture:
        assert picture.width == 960


@pytest.mark.parametrize(
    ("path", "folder", "named"),
    [
        ("photos/a.png", "s3://bucket/out", "a.png"),
        ("s3://bucket/photos/a.png", "out", "a.png"),
        ("photos/a.png", "out", "../photos/a.png"),
        ("", "s3://bucket/out", ""),
    ],
)
def test_labelme_names_the_image(result, path, folder, named):
    again = Result(result.image, result.mask, result.confidence, result.labels, list, path=path)
    assert json.loads(again.encode("labelme", folder=folder))["imagePath"] == named


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_of_another_kind_is_refused(result, tmp_path, kind):
    with pytest.raises(TypeError, match="tolerence"):
        result.save(tmp_path / f"a{KINDS[kind]}", kind, tolerence=3)
    with pytest.raises(TypeError, match="tolerence"):
        result.encode(kind, tolerence=3)
    with pytest.raises(SetrError, match="choose from"):
        result.encode("pictures", tolerence=3)
    assert not list(tmp_path.iterdir())


def test_options_reach_coco_and_labelme(result):
    large = result.polygons(min_pixels=50)
    assert len(large) < len(result.polygons())
    exact, coarse = (result.coco(tolerance=t, min_pixels=50)["annotations"] for t in (0.0, 2.0))
    assert [a["area"] for a in exact] == [a["area"] for a in coarse] == [p.pixels for p in large]
    points = [
        sum(len(a["segmentation"][0]) for a in part if isinstance(a["segmentation"], list))
        for part in (exact, coarse)
    ]
    assert points[1] < points[0]
    shapes = [result.labelme(tolerance=t, min_pixels=50)["shapes"] for t in (0.0, 2.0)]
    assert [len(part) for part in shapes] == [len(large)] * 2
    assert sum(len(s["points"]) for s in shapes[1]) < sum(len(s["points"]) for s in shapes[0])


def test_a_pixel_of_just_the_least_confidence_keeps_its_class():
    mask = np.array([1, 2, 255], np.uint8)
    assert unlabel(mask, np.array([0.5, 0.49, 0.1], np.float32), 0.5) == 1  # had a class
    assert mask.tolist() == [1, 255, 255]
