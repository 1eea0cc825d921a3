"""Prediction of arrays, files, folders: sizes, kinds, broken files, names."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import setr
from setr.cli import main
from setr.data import scenes
from setr.errors import FAILED, OK, USAGE, SetrError
from setr.evaluation import evaluate, resolve_protocol
from setr.hub import from_pretrained, save_pretrained
from setr.images import encode_png
from setr.labels import known_labels
from setr.layers.precision import autocast_dtype
from setr.loading import load
from setr.model_info import ModelInfo
from setr.predictor import Predictor
from setr.protocols import Protocol
from setr.reading.masks import read_mask
from setr.scores.submissions import TEST_IMAGES, check_submission
from setr.writing import write_bytes
from tests.conftest import refusal, save_scene_model, tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scene_model(tmp_path_factory.mktemp("model"), protocol=Protocol(short_side=40))


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


def test_a_result_goes_to_another_process(model_dir, photo):
    result = setr.load(model_dir, precision="fp32", min_confidence=0.2).predict(photo)
    there = pickle.loads(pickle.dumps(result))
    assert (there.mask == result.mask).all()
    assert there.shares == result.shares
    assert there.geojson() == result.geojson()
    with pytest.raises(SetrError, match=r"read result\.scores before pickling"):
        _ = there.scores
    assert (copy.deepcopy(result).scores == result.scores).all()  # the model is still here
    assert (pickle.loads(pickle.dumps(result)).scores == result.scores).all()


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


def test_the_ways_to_a_predictor(model_dir, photo):
    expected = load(model_dir).predict(photo)
    model, info = from_pretrained(model_dir)
    predictor = load(model, info=info, device="cpu")
    assert (predictor(photo).mask == expected.mask).all()
    assert predictor.to("cpu") is predictor
    assert (predictor(photo).mask == expected.mask).all()
    with pytest.raises(SetrError, match="device 'cuda:99': this machine has"):
        predictor.to("cuda:99")
    for source, options in ((model, {}), (model_dir, {"info": info}), (None, {}), (predictor, {})):
        with pytest.raises(SetrError, match="info="):
            load(source, **options)
    with pytest.raises(SetrError, match="num_heads: is for checkpoints of other code"):
        load(model_dir, num_heads=2)


class Column(Sequence):
    """A sequence that is no list, and that NumPy would join into one array."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_lists_and_iterators_are_many_images(model_dir, photo, tmp_path):
    write_bytes(tmp_path / "a.png", encode_png(photo))
    write_bytes(tmp_path / "b.png", encode_png(photo))
    predictor = load(model_dir)
    paths = sorted(tmp_path.glob("*.png"))
    assert predictor.predict_batch([]) == []
    several = (paths, tuple(paths), iter(paths), [photo, paths[1:]], tmp_path.glob("*"), [tmp_path])
    for given in several:
        assert len(list(predictor.predict_all(given))) == 2
    with open(paths[0], "rb") as file:
        assert len(list(predictor.predict_all(file, photo))) == 2
    column = Column(paths)  # of a Hugging Face data set
    assert len(list(predictor.predict_all(column))) == 2
    for given in (paths, tuple(paths), column):
        with pytest.raises(SetrError, match="takes one image; predict_all takes several"):
            predictor.predict(given)
        assert len(predictor.predict_batch(iter(given))) == 2
    with pytest.raises(SetrError, match=r"\*\.png: is a pattern; predict_all takes patterns"):
        predictor.predict(str(tmp_path / "*.png"))
    pixels = np.zeros((32, 48, 3), np.uint8)
    chw = torch.zeros(3, 32, 48)
    assert len(predictor.predict_batch(np.stack([pixels, pixels]))) == 2
    assert len(predictor.predict_batch(pixels[None, ..., 0].repeat(4, axis=0))) == 4  # grey
    for one in (paths[0], str(paths[0]), paths[0].read_bytes(), pixels, chw):
        with pytest.raises(SetrError, match="predict_batch takes a list of images"):
            predictor.predict_batch(one)


def test_what_is_evaluated_is_what_is_predicted(model_dir):
    """Windows, too: `window` was a matter of `predict` alone."""
    predictor = load(model_dir, window=24)
    assert predictor.info.protocol == Protocol(short_side=40).in_windows(24)
    figures = setr.evaluate(predictor, "scenes:4", detailed=False)
    assert "window 24x24, stride 18x18" in figures["protocol"]
    named = load(model_dir, window=24, protocol="whole").info.protocol
    assert named.window == (24, 24)


def test_a_result_in_the_viewer_of_pictures(model_dir, photo, monkeypatch):
    result = load(model_dir).predict(photo)
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("PIL.ImageShow.show", lambda image, title: shown.append(image) or True)
    result.show()
    height, width = photo.shape[:2]
    assert (np.asarray(shown[0])[:height, :width] == result.overlay()).all()
    assert shown[0].height > height  # the legend
    monkeypatch.setattr("PIL.ImageShow.show", lambda image, title: False)
    with pytest.raises(SetrError, match="no viewer of pictures on this machine"):
        result.show()
    monkeypatch.setattr("PIL.ImageShow.show", lambda image, title: True)  # xdg-open was started
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SetrError, match="no screen here to show a picture on"):
        result.show()


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


def test_the_suffix_chooses_the_format(model_dir, photo, tmp_path):
    result = load(model_dir).predict(photo)
    for name, kind, form, expected in (
        ("a.png", "overlay", "PNG", result.overlay()),
        ("a.TIF", "overlay", "TIFF", result.overlay()),
        ("a.bmp", "ids", "BMP", result.mask),
        ("a.tiff", "mask", "TIFF", result.mask),
        ("a", "mask", "PNG", result.mask),
        ("a.jpg", "overlay", "JPEG", None),
        ("a.webp", "confidence", "WEBP", None),
    ):
        result.save(tmp_path / name, kind)
        with Image.open(tmp_path / name) as image:
            assert image.format == form
            if expected is not None:
                np.testing.assert_array_equal(np.asarray(image), expected)
    assert result.encode("overlay", suffix="jpg") == result.encode("overlay", suffix=".jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert abs(np.asarray(image, float) - result.overlay()).mean() < 8
    result.save(tmp_path / "a.json", "geojson")
    assert json.loads((tmp_path / "a.json").read_text())["type"] == "FeatureCollection"


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("x.jpg", "mask", r"not written as \.jpg, which would change its values; .* \.png"),
        ("x.geojson", "mask", r"not written as \.geojson; .*such as 'geojson'"),
        ("x.jpg", "mask", r"its values; end the name in .*, \.bmp; or .* kind, such as 'overlay'"),
        ("x.png", "scores", r"kind 'scores' is not written as \.png; end the name in \.npz"),
        ("x.npz", "overlay", r"not written as \.npz; .*such as 'scores'"),
        ("x.png", "share", r"\.json"),
        ("photo.2", "mask", r"not written as \.2"),
    ],
)
def test_a_suffix_of_another_kind_is_refused(model_dir, photo, tmp_path, name, kind, says):
    result = load(model_dir).predict(photo)
    with pytest.raises(SetrError, match=says):
        result.save(tmp_path / name, kind)
    assert not (tmp_path / name).exists()


def test_the_opacity_of_an_overlay(model_dir, photo, tmp_path):
    result = load(model_dir).predict(photo)
    result.save(tmp_path / "a.png", "overlay", opacity=0)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == photo).all()
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(SetrError, match=r"opacity .*: give 0 to 1"):
            result.save(tmp_path / "b.png", "overlay", opacity=wrong)
    with pytest.raises(TypeError, match="'mask' has no option 'opacity'"):
        result.save(tmp_path / "b.png", opacity=0.5)
    with pytest.raises(TypeError, match="'geojson' has no option 'opacity'"):
        result.encode("geojson", opacity=0.5)
    assert not (tmp_path / "b.png").exists()
    write_bytes(tmp_path / "street.png", encode_png(photo))
    command = ["predict", str(model_dir), str(tmp_path / "street.png"), "-o", str(tmp_path / "out")]
    assert main([*command, "--save", "overlay,mask,geojson", "--opacity", "0"]) == OK
    assert (np.asarray(Image.open(tmp_path / "out" / "street_overlay.png")) == photo).all()


@pytest.mark.parametrize(("kind", "suffix"), [("mask", ".jpg"), ("overlay", ".pdf")])
def test_bytes_in_a_format_of_another_kind_are_refused(model_dir, photo, kind, suffix):
    with pytest.raises(SetrError, match=f"kind '{kind}' is not written as {suffix}"):
        load(model_dir).predict(photo).encode(kind, suffix=suffix)


def test_devices_as_torch_has_them_and_precisions_by_name(model_dir, photo):
    assert load(model_dir, device=torch.device("cpu")).predict(photo).mask.shape == photo.shape[:2]
    with pytest.raises(SetrError, match="precision: 'float16': give one of auto, fp32, bf16, fp16"):
        load(model_dir, precision="float16")


@pytest.mark.parametrize(("cast", "error"), [("half", 2e-3), ("bfloat16", 0.02), ("double", 1e-5)])
def test_a_model_in_another_type_runs_in_it(model_dir, photo, cast, error):
    expected = load(model_dir, precision="fp32").predict(photo)
    model, info = from_pretrained(model_dir)
    model = getattr(model, cast)()
    result = load(model, info=info, device="cpu").predict(photo)
    np.testing.assert_allclose(result.confidence, expected.confidence, atol=error)
    assert result.scores.dtype == result.confidence.dtype == np.float32
    figures = evaluate(model, "scenes:20", info=info, workers=0, detailed=False)
    assert figures["images"] == 2
    has_bf16 = autocast_dtype("auto", torch.device("cpu")) is not None
    if has_bf16 and cast != "bfloat16":
        with pytest.raises(
            SetrError, match=r"precision bf16: the model's weights are float(16|64)"
        ):
            load(model, info=info, device="cpu", precision="bf16")


def test_model_directory_round_trip(model_dir, tmp_path):
    model, info = from_pretrained(model_dir)
    save_pretrained(tmp_path / "copy", model, info)
    again, info_again = from_pretrained(tmp_path / "copy")
    assert info_again == info
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_loaded_model_does_not_follow_its_file(model_dir, tmp_path):
    """`cp new old` writes into the file that a running program has loaded."""
    model, info = from_pretrained(model_dir)
    save_pretrained(tmp_path / "served", model, info)
    served, _ = from_pretrained(tmp_path / "served")
    weights = tmp_path / "served" / "model.safetensors"
    with open(weights, "r+b") as file:
        file.write(b"?" * weights.stat().st_size)
    pairs = zip(model.state_dict().values(), served.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


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


@pytest.mark.parametrize("out", ["mask.png", "overlay.JPG", "all.geojson", "clip.mp4", "notes"])
def test_an_output_that_is_no_folder_is_refused(model_dir, photo, tmp_path, capsys, out):
    write_bytes(tmp_path / "a.png", encode_png(photo))
    (tmp_path / "notes").write_text("mine")
    arguments = ["predict", str(model_dir), str(tmp_path / "a.png"), "-o", str(tmp_path / out)]
    assert main(arguments) == USAGE
    assert f"{out}: names a file; give a folder" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "notes"}
    (tmp_path / "notes").unlink()
    (tmp_path / out).mkdir()
    assert main(arguments) == OK


def test_predict_globs_and_json(model_dir, photo, tmp_path, capsys):
    for i in range(2):
        write_bytes(tmp_path / f"p{i}.png", encode_png(photo))
    pattern, out = str(tmp_path / "p*.png"), str(tmp_path / "out")
    code = main(["predict", str(model_dir), pattern, "-o", out, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == OK
    assert answer["failed"] == 0
    assert [Path(i["image"]).name for i in answer["images"]] == ["p0.png", "p1.png"]


FORKED = """if True:
    import os, sys, threading
    import numpy as np
    import torch
    from setr.errors import USAGE, SetrError
    from setr.labels import Labels
    from setr.model_info import ModelInfo
    from setr.predictor import Predictor
    from tests.conftest import tiny_model

    torch.set_num_threads(2)
    predictor = Predictor(tiny_model(), ModelInfo(labels=Labels(tuple("abcde"))))
    image = np.zeros((200, 300, 3), np.uint8)
    predictor.predict(image)
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    try:
        predictor.predict(image)
    except SetrError as error:
        found = [error.code, str(error)]
    else:
        os._exit(10)
    thread = threading.Thread(target=lambda: found.append(predictor.predict(image)))
    thread.start()
    thread.join()
    torch.set_num_threads(1)
    predictor.predict(image)
    os._exit(found[0] if "'spawn'" in found[1] and len(found) == 3 else 11)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and /proc of Linux")
def test_a_forked_process_says_that_its_threads_are_missing():
    """It used to wait for them for ever."""
    if "libgomp" not in Path("/proc/self/maps").read_text():
        pytest.skip("needs a torch with GNU's OpenMP")
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=300, check=False)
    assert done.returncode == USAGE


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


@pytest.mark.parametrize(
    ("names", "save", "clash"),
    [
        (("a.png", "a_overlay.png"), "mask,overlay", "a_overlay.png"),
        (("a.png", "a_ids.jpg"), "ids,labelme,mask", "a_ids.png"),
        (("a.png", "a_coco.png"), "coco,labelme", "a_coco.json"),
        (("a.jpg", "a.png/b.jpg"), "mask", "a.png"),
    ],
)
def test_no_two_kinds_write_one_file(model_dir, photo, tmp_path, capsys, names, save, clash):
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(tmp_path / "in" / name, encode_png(photo))
    command = ["predict", str(model_dir), str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert f"would both write {clash}" in refusal(capsys, *command, "--save", save)
    assert not (tmp_path / "out").exists()
    assert main([*command, "--save", "share"]) == OK


@pytest.mark.parametrize(
    ("images", "out", "options"),
    [
        ("street.png", ".", ()),
        (".", ".", ()),
        ("street.png", "../photos", ()),
        ("street.png", "../linked", ()),
        ("../elsewhere/street.png", ".", ()),
        ("street.jpg street_overlay.png", ".", ("--save", "overlay")),
        ("part-000000.tar", ".", ("--pack", "tar")),
        ("street.png", "file://{here}", ()),
    ],
)
def test_an_input_is_never_overwritten(
    model_dir, photo, tmp_path, monkeypatch, capsys, images, out, options
):
    here = tmp_path / "photos"
    (tmp_path / "elsewhere").mkdir()
    here.mkdir()
    (tmp_path / "linked").symlink_to(here)
    for name in ("street.png", "street_overlay.png"):
        write_bytes(here / name, encode_png(photo))
    with tarfile.open(here / "part-000000.tar", "w") as archive:
        archive.add(here / "street.png", "street.png")
    (tmp_path / "elsewhere" / "street.png").symlink_to(here / "street.png")
    write_bytes(tmp_path / "elsewhere" / "street.jpg", encode_png(photo))
    (here / "street.jpg").symlink_to(tmp_path / "elsewhere" / "street.jpg")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    monkeypatch.chdir(here)
    command = ["predict", str(model_dir), *images.split(), "-o", out.format(here=here), *options]
    err = refusal(capsys, *command)
    assert "is an input that this run would replace" in err
    assert "choose another folder with -o" in err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_results_inside_the_folder_are_no_images(model_dir, photo, tmp_path, monkeypatch, capsys):
    """Or the same command would segment its own masks, and could not continue."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    write_bytes(tmp_path / "sub" / "street.jpg", encode_png(photo))
    command = ["predict", str(model_dir), ".", "-o", "out", "--save", "mask,overlay"]
    for _ in range(2):
        assert main(command) == OK
    assert "1 of 1 images were done before" in capsys.readouterr().err
    files = sorted(str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file())
    assert files == ["manifest.jsonl", "sub/street.png", "sub/street_overlay.png"]
    assert main(["predict", str(model_dir), "out", "-o", "more"]) == OK  # unless asked for
    assert len(list(Path("more").rglob("*.png"))) == 2


def test_a_protocol_by_its_name(model_dir, photo, tmp_path, capsys):
    write_bytes(tmp_path / "a.png", encode_png(photo))
    command = ["predict", str(model_dir), str(tmp_path / "a.png"), "--save", "scores"]
    found = {}
    for name in (None, "whole", "paper-ms"):
        options = ["--protocol", name] if name else []
        out = tmp_path / str(name)
        assert main([*command, "-o", str(out), "--precision", "fp32", *options]) == OK
        found[name] = np.load(out / "a_scores.npz")["scores"]
    model, info = from_pretrained(model_dir)
    several = dataclasses.replace(info, protocol=resolve_protocol("paper-ms", model, info))
    expected = Predictor(model, several, precision="fp32").predict(photo).scores
    assert np.array_equal(found["paper-ms"], expected.astype(np.float16))
    assert np.array_equal(found["whole"], found[None])  # what the model's own is
    assert not np.array_equal(found["whole"], found["paper-ms"])
    named = load(model_dir, precision="fp32", protocol="paper-ms")
    assert np.array_equal(named.predict(photo).scores, expected)
    capsys.readouterr()
    for wrong, message in (
        (("--protocol", "paper"), "did you mean 'paper-"),
        (("--protocol", "paper", "--engine", "ray"), "did you mean 'paper-"),
    ):
        assert main([*command, "-o", str(tmp_path / "whole"), *wrong]) == USAGE
        assert message in capsys.readouterr().err


def test_awkward_names(model_dir, photo, tmp_path, capsys):
    names = ["ü b.png", "-x.png", "%s.png", "new\nline.png", "日本.png", "a.b.png"]
    names.append(os.fsdecode(b"latin\xe9.png"))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(encode_png(photo))
    code = main(["predict", str(model_dir), str(folder), "-o", str(tmp_path / "out")])
    assert len(capsys.readouterr().out.splitlines()) == len(names)
    assert code == OK
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*names, "manifest.jsonl"])


def test_protocol_is_stored_with_the_model(model_dir):
    _, info = from_pretrained(model_dir)
    assert info.protocol == Protocol(short_side=40)
    wide = dataclasses.replace(info, protocol=Protocol(scales=(1.0, 1.5), flip=True))
    result = Predictor(from_pretrained(model_dir)[0], wide).predict(np.zeros((32, 32, 3), np.uint8))
    assert result.mask.shape == (32, 32)


@pytest.mark.parametrize("named", [None, "paper-ss"])
def test_scales_and_flip_replace_those_of_the_protocol(model_dir, photo, tmp_path, capsys, named):
    own = setr.load(model_dir, protocol=named).info.protocol
    expected = dataclasses.replace(own, scales=(0.75, 1.0, 1.5), flip=True)
    views = {"scales": [0.75, 1.0, 1.5], "flip": True}
    predictor = setr.load(model_dir, precision="fp32", protocol=named, **views)
    assert predictor.info.protocol == expected
    write_bytes(tmp_path / "photo.png", encode_png(photo))
    given = ("--protocol", named) if named else ()
    command = ["predict", str(model_dir), str(tmp_path / "photo.png"), "-o", str(tmp_path / "out")]
    command += ["--precision", "fp32", "--save", "scores", *given]
    scores = []
    for chosen in (["--scales", "0.75", "1.0", "1.5", "--flip"], []):
        assert main([*command, *chosen]) == OK
        scores.append(np.load(tmp_path / "out" / "photo_scores.npz")["scores"])
    np.testing.assert_array_equal(scores[0], predictor.predict(photo).scores.astype(np.float16))
    assert (scores[0] != scores[1]).mean() > 0.1
    one = setr.load(model_dir, protocol="mmseg-ms", scales=[1]).info.protocol
    assert (one.scales, one.flip) == ((1,), True)  # not asked about: as the protocol has it
    assert not setr.load(model_dir, protocol="mmseg-ms", flip=False).info.protocol.flip


def test_a_short_side_replaces_that_of_the_protocol(model_dir, photo, tmp_path, capsys):
    own = setr.load(model_dir).info.protocol
    predictor = setr.load(model_dir, precision="fp32", short_side=24)
    assert predictor.info.protocol == dataclasses.replace(own, short_side=24)
    result = predictor.predict(photo)
    assert result.mask.shape == photo.shape[:2]
    write_bytes(tmp_path / "photo.png", encode_png(photo))
    command = ["predict", str(model_dir), str(tmp_path / "photo.png"), "-o", str(tmp_path / "out")]
    command += ["--precision", "fp32", "--save", "scores"]
    found = []
    for chosen in (["--short-side", "24"], []):  # another size: the image is done again
        assert main([*command, *chosen]) == OK
        found.append(np.load(tmp_path / "out" / "photo_scores.npz")["scores"])
    np.testing.assert_array_equal(found[0], result.scores.astype(np.float16))
    assert (found[0] != found[1]).mean() > 0.1
    assert main([*command, "--short-side", "0"]) == USAGE
    assert "--short-side 0" in capsys.readouterr().err


def test_where_it_runs_is_said(model_dir, photo, tmp_path, monkeypatch, capsys):
    write_bytes(tmp_path / "photo.png", encode_png(photo))
    monkeypatch.setattr("setr.commands.predict_run.gpu_out_of_reach", lambda: "torch has no CUDA")
    command = ["predict", str(model_dir), str(tmp_path / "photo.png"), "-o", str(tmp_path / "out")]
    for device, told in (("auto", True), ("cpu", False)):
        assert main([*command, "--device", device, "--precision", "fp32"]) == OK
        err = capsys.readouterr().err
        assert re.search(r"setr: predicting on cpu \(threads: \d+\) in fp32\n", err)
        assert ("setr: warning: torch has no CUDA" in err) is told


def test_submission_for_a_test_server(photo, tmp_path, monkeypatch, capsys):
    model_dir, images, out = tmp_path / "model", tmp_path / "in", tmp_path / "out"
    info = ModelInfo(labels=known_labels("ade20k"))
    save_pretrained(model_dir, tiny_model(num_classes=150), info)
    images.mkdir()
    write_bytes(images / "ADE_test_00000001.jpg", encode_png(photo))
    arguments = ["predict", str(model_dir), str(images), "-o", str(out), "--submit", "ade20k"]
    assert main(arguments) == OK
    assert check_submission("ade20k", out / "ade20k.zip") == 1
    told = capsys.readouterr().err
    assert "warning: 1 image, but the test split of ade20k has 3,352, and the server wants" in told
    with monkeypatch.context() as patch:
        patch.setitem(TEST_IMAGES, "ade20k", 1)
        assert main(arguments) == OK
    assert "but the test split" not in capsys.readouterr().err
    seen, plain, predict = [], load(model_dir), Predictor.predict
    with monkeypatch.context() as patch:
        patch.setattr(  # what is asked for, without its hundred windows
            Predictor, "predict", lambda s, i: seen.append(s.info.protocol) or predict(plain, i)
        )
        assert main([*arguments, "--protocol", "paper-ms"]) == OK
    assert [protocol.flip for protocol in seen] == [True]
    assert seen[0].window == (512, 512)
    write_bytes(images / "ADE_test_00000002.jpg", b"broken")
    (out / "ade20k.zip").unlink()
    assert main(arguments) == FAILED
    assert "ADE_test_00000002.jpg: not an image" in capsys.readouterr().err
    assert list(out.iterdir()) == []
