"""Prediction of arrays, files, folders: sizes, kinds, broken files, names."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import setr
from setr import scenes
from setr.cli import main
from setr.errors import FAILED, OK, USAGE, SetrError
from setr.files import write_bytes
from setr.hub import ModelInfo, from_pretrained, save_pretrained
from setr.images import encode_png
from setr.inference import Protocol
from setr.labels import known_labels
from setr.masks import read_mask
from setr.predictor import Predictor, load
from setr.submissions import check_submission
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    info = ModelInfo(labels=scenes.LABELS, protocol=Protocol(short_side=40))
    save_pretrained(folder, tiny_model(num_classes=len(scenes.CLASSES)), info)
    return folder


@pytest.fixture
def photo() -> np.ndarray:
    return scenes.draw("photo", 0, size=64)[0][:50]


def test_result_of_an_array(model_dir, photo):
    result = setr.load(model_dir, precision="fp32").predict(photo)
    assert result.mask.shape == (50, 64)
    assert result.mask.dtype == np.uint8
    assert result.scores.shape == (9, 50, 64)
    np.testing.assert_allclose(result.scores.sum(axis=0), 1, atol=1e-5)
    assert (result.scores.argmax(axis=0) == result.mask).mean() > 0.999
    assert sum(result.shares.values()) == pytest.approx(1)
    assert result.overlay().shape == photo.shape
    assert (result.overlay(opacity=0) == photo).all()
    assert "data:image/png" in result._repr_html_()


def test_every_kind_of_source_gives_the_same_mask(model_dir, photo, tmp_path):
    predictor = load(model_dir, precision="fp32")
    data = encode_png(photo)
    write_bytes(tmp_path / "a.png", data)
    expected = predictor.predict(photo).mask
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.fromarray(photo)):
        assert (predictor.predict(source).mask == expected).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 91), (128, 8)])
def test_any_size_comes_back(model_dir, size):
    image = np.zeros((*size, 3), np.uint8)
    assert load(model_dir).predict(image).mask.shape == size


def test_arrays_of_another_kind_are_refused(model_dir):
    predictor = load(model_dir)
    for array in (
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(SetrError, match="give uint8 RGB"):
            predictor.predict(array)


def test_save_kinds(model_dir, photo, tmp_path):
    result = load(model_dir).predict(photo)
    result.save(tmp_path / "deep" / "mask.png")
    assert (read_mask(tmp_path / "deep" / "mask.png") == result.mask).all()
    with Image.open(tmp_path / "deep" / "mask.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image.convert("RGB")) == result.color()).all()
    result.save(tmp_path / "scores.npz", "scores")
    saved = np.load(tmp_path / "scores.npz")
    np.testing.assert_allclose(saved["scores"], result.scores, atol=1e-3)
    with pytest.raises(SetrError, match="choose from mask, ids, color, overlay"):
        result.save(tmp_path / "x.png", "video")


def test_model_directory_round_trip(model_dir, tmp_path):
    model, info = from_pretrained(model_dir)
    save_pretrained(tmp_path / "copy", model, info)
    again, info_again = from_pretrained(tmp_path / "copy")
    assert info_again == info
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", b"{", "config.json: broken"),
        ("config.json", b"{}", "format is not"),
        ("model.safetensors", b"1234", "broken or of another model"),
        ("model.safetensors", None, "no such file"),
        ("config.json", None, "no config.json"),
    ],
)
def test_broken_model_directories(model_dir, tmp_path, name, content, expected):
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SetrError, match=expected):
        load(tmp_path)


def test_predict_does_the_good_files_and_names_the_broken_ones(model_dir, photo, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    write_bytes(folder / "good.png", encode_png(photo))
    write_bytes(folder / "sub" / "good.PNG", encode_png(photo))
    write_bytes(folder / "broken.jpg", b"not an image")
    write_bytes(folder / "cut.png", encode_png(photo)[:200])
    write_bytes(folder / ".hidden.png", encode_png(photo))
    out = tmp_path / "out"
    code = main(["predict", str(model_dir), str(folder), "-o", str(out), "--save", "mask,overlay"])
    err = capsys.readouterr().err
    assert code == FAILED
    assert "broken.jpg: not an image" in err
    assert "cut.png: broken image file" in err
    assert "2 of 4 images failed" in err
    assert "Traceback" not in err
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    pictures = ["good.png", "good_overlay.png", "sub/good.png", "sub/good_overlay.png"]
    assert written == sorted([*pictures, "manifest.jsonl"])
    with Image.open(out / "good.png") as image:
        assert image.size == (64, 50)


def test_predict_globs_and_json(model_dir, photo, tmp_path, capsys):
    for i in range(2):
        write_bytes(tmp_path / f"p{i}.png", encode_png(photo))
    pattern, out = str(tmp_path / "p*.png"), str(tmp_path / "out")
    code = main(["predict", str(model_dir), pattern, "-o", out, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == OK
    assert answer["failed"] == 0
    assert [Path(i["image"]).name for i in answer["images"]] == ["p0.png", "p1.png"]


def test_two_images_never_write_one_file(model_dir, photo, tmp_path, capsys):
    for folder in ("one", "two"):
        for name in ("a.png", "a.bmp", "b.png"):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_bytes(tmp_path / folder / name, encode_png(photo))
    out = tmp_path / "out"
    assert main(["predict", str(model_dir), str(tmp_path / "one"), "-o", str(out)]) == OK
    assert sorted(os.listdir(out)) == ["a.bmp.png", "a.png.png", "b.png", "manifest.jsonl"]
    both = [str(tmp_path / folder / "b.png") for folder in ("one", "two")]
    code = main(["predict", str(model_dir), *both, "-o", str(tmp_path / "clash")])
    assert code == USAGE
    assert "would both write" in capsys.readouterr().err
    assert not (tmp_path / "clash").exists()


def test_awkward_names(model_dir, photo, tmp_path, capsys):
    names = ["ü b.png", "-x.png", "%s.png", "new\nline.png", "日本.png", "a.b.png"]
    names.append(os.fsdecode(b"latin\xe9.png"))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(encode_png(photo))
    code = main(["predict", str(model_dir), str(folder), "-o", str(tmp_path / "out")])
    capsys.readouterr()
    assert code == OK
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*names, "manifest.jsonl"])


def test_protocol_is_stored_with_the_model(model_dir):
    _, info = from_pretrained(model_dir)
    assert info.protocol == Protocol(short_side=40)
    wide = dataclasses.replace(info, protocol=Protocol(scales=(1.0, 1.5), flip=True))
    result = Predictor(from_pretrained(model_dir)[0], wide).predict(np.zeros((32, 32, 3), np.uint8))
    assert result.mask.shape == (32, 32)


def test_submission_for_a_test_server(photo, tmp_path, capsys):
    model_dir, images, out = tmp_path / "model", tmp_path / "in", tmp_path / "out"
    info = ModelInfo(labels=known_labels("ade20k"))
    save_pretrained(model_dir, tiny_model(num_classes=150), info)
    images.mkdir()
    write_bytes(images / "ADE_test_00000001.jpg", encode_png(photo))
    arguments = ["predict", str(model_dir), str(images), "-o", str(out), "--submit", "ade20k"]
    assert main(arguments) == OK
    assert check_submission("ade20k", out / "ade20k.zip") == 1
    write_bytes(images / "ADE_test_00000002.jpg", b"broken")
    (out / "ade20k.zip").unlink()
    assert main(arguments) == FAILED
    assert "ADE_test_00000002.jpg: not an image" in capsys.readouterr().err
    assert list(out.iterdir()) == []
