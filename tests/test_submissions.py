"""Submissions are what the servers' own rules ask for."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from setr.errors import USAGE, SetrError
from setr.labels import Labels, known_labels
from setr.scores.submissions import Submission, check_submission, raw_ids
from tests.conftest import disk_for

CITY = known_labels("cityscapes")
ADE = known_labels("ade20k")
STREET = "berlin_000000_000019_leftImg8bit.png"


def test_ids_of_the_servers(shared):
    facts = json.loads((shared / "labels" / "cityscapes.json").read_text())
    assert raw_ids(CITY).tolist() == [facts["trainId_to_id"][str(i)] for i in range(19)]
    assert raw_ids(ADE).tolist() == list(range(1, 151))


def test_cityscapes(tmp_path):
    prediction = np.random.default_rng(0).integers(0, 19, (1024, 2048), np.uint8)
    path = tmp_path / "city.zip"
    with Submission("cityscapes", path, CITY) as submission:
        submission.add(STREET, prediction)
        submission.add("/x/bonn_000001_000019_leftImg8bit.png", prediction)
        assert not path.exists()
    assert check_submission("cityscapes", path) == 2
    with zipfile.ZipFile(path) as file:
        with Image.open(io.BytesIO(file.read(STREET))) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), raw_ids(CITY)[prediction])
        assert "bonn_000001_000019_leftImg8bit.png" in file.namelist()


def test_ade20k(tmp_path):
    path = tmp_path / "ade.zip"
    with Submission("ade20k", path, ADE) as submission:
        submission.add("ADE_test_00000001.jpg", np.array([[0, 149]], np.uint8))
    assert check_submission("ade20k", path) == 1
    with zipfile.ZipFile(path) as file, file.open("ADE_test_00000001.png") as member:
        assert np.asarray(Image.open(io.BytesIO(member.read()))).tolist() == [[1, 150]]


def test_what_the_servers_refuse_is_refused_here(tmp_path):
    frame = np.zeros((1024, 2048), np.uint8)
    with Submission("cityscapes", tmp_path / "a.zip", CITY) as submission:
        with pytest.raises(SetrError, match="not a test image"):
            submission.add("photo.png", frame)
        with pytest.raises(SetrError, match="2048x1024"):
            submission.add(STREET, frame[:512])
        with pytest.raises(SetrError, match="id 19 is not a class"):
            submission.add(STREET, frame + 19)
        submission.add(STREET, frame)
        with pytest.raises(SetrError, match="two predictions"):
            submission.add("berlin_000000_000019_other.png", frame)
    with pytest.raises(SetrError, match="not the 150 of ade20k") as caught:
        Submission("ade20k", tmp_path / "b.zip", Labels(("a",)))
    assert caught.value.code == USAGE


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail():
        with Submission("cityscapes", tmp_path / "a.zip", CITY) as submission:
            submission.add(STREET, np.zeros((1024, 2048), np.uint8))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with (
        pytest.raises(SetrError, match="no predictions"),
        Submission("ade20k", tmp_path / "b", ADE),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_equal_predictions_make_equal_files(tmp_path):
    for name in ("a.zip", "b.zip"):
        with Submission("ade20k", tmp_path / name, ADE) as submission:
            submission.add("ADE_test_00000001.jpg", np.zeros((4, 4), np.uint8))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_wrong_zip_is_recognised(tmp_path):
    path = tmp_path / "a.zip"
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(buffer, "PNG")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ADE_test_00000001.png", buffer.getvalue())
    with pytest.raises(SetrError, match="ids the server does not take"):
        check_submission("ade20k", path)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 150, (64, 64), np.uint8)

    def submit() -> None:
        with Submission("ade20k", tmp_path / "ade.zip", ADE) as submission:
            for number in range(9):
                submission.add(f"ADE_test_{number:08}.jpg", noise)

    with disk_for(1000), pytest.raises(SetrError, match=r"ade\.zip: cannot write: File too large"):
        submit()
    assert list(tmp_path.iterdir()) == []
