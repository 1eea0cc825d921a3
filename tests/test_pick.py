"""`setr pick`: uncertain images that do not look alike come first, and can be predicted further."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from setr.cli import main
from setr.data.unlabelled import open_unlabelled
from setr.errors import FAILED, INTERRUPTED, OK, DataError, SetrError
from setr.images import encode_png
from setr.picking import Uncertain, farthest_first, margin_uncertainty, pick_images
from setr.prediction.inputs import find_items, output_names
from setr.scores.scored_images import ScoredImage
from tests.conftest import refusal
from tests.test_report import Balanced
from tests.test_review import INFO, Oracle, scene, shown


def test_doubt_is_one_minus_the_margin():
    torch.manual_seed(0)
    scores = 3 * torch.randn(2, 7, 5, 4)
    before = scores.clone()
    first, second = scores.softmax(1).topk(2, dim=1).values.unbind(1)
    torch.testing.assert_close(margin_uncertainty(scores, torch.zeros(())), 1 - (first - second))
    torch.testing.assert_close(scores, before, rtol=0, atol=0)
    logarithms = scores.softmax(1).log()  # what several scales give
    torch.testing.assert_close(
        margin_uncertainty(logarithms, torch.zeros(())), 1 - (first - second)
    )
    ties = torch.tensor([1.0, 1.0, -50.0]).view(1, 3, 1, 1)
    assert float(margin_uncertainty(ties, torch.zeros(()))) == pytest.approx(1)


def test_points_are_spread():
    """Ten frames of a video, of which the most uncertain ones are neighbours, and another place."""
    places = np.array([[0.0], [1.0], [2.0], [3.0], [100.0], [101.0]])
    weights = np.array([0.9, 0.95, 0.9, 0.9, 0.2, 0.1])
    assert farthest_first(weights, places, 2) == [1, 4]
    assert farthest_first(weights, places, 3) == [1, 4, 3]
    assert sorted(farthest_first(weights, places, 99)) == list(range(6))
    same = np.zeros((4, 1))
    assert farthest_first(np.array([0.1, 0.4, 0.0, 0.3]), same, 4) == [1, 3, 0, 2]
    assert farthest_first(np.zeros(2), same[:2], 2) == [0, 1]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video of one place in `a`, in which the oracle is unsure, and other places in `b`."""
    for number in range(6):
        image = shown(scene(0), 0, sure=40)
        image[..., 2] //= 2
        image[number, 0] += 1
        other = shown(scene(number + 1), number + 1, sure=60 + 10 * number)
        other[..., 2] = 40 * number
        for folder, array in (("a", image), ("b", other)):
            path = tmp_path / "photos" / folder / f"frame {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(array))

    def load(path: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(model=Oracle(), info=INFO)

    monkeypatch.setattr("setr.loading.load", load)
    return tmp_path


def pick(root: Path, *more: str) -> int:
    given = ["pick", "model", str(root / "photos"), "-o", str(root / "out"), "--workers", "0"]
    return main([*given, *more])


def test_frames_of_one_video_are_not_all_chosen(photos):
    dataset = open_unlabelled(photos / "photos", INFO.labels, None, "")
    options: dict[str, Any] = {"workers": 0, "precision": "fp32"}
    picks = pick_images(Oracle(), INFO, dataset, 4, **options)  # type: ignore[arg-type]
    names = [picks.names[number] for number in picks.chosen]
    assert names[0].startswith("photos/a/") or names[0].startswith("a/")
    assert sum("a/" in name for name in names) == 1
    by_doubt = sorted(picks.names, key=lambda number: -picks.uncertainty[number])
    assert sum("a/" in picks.names[number] for number in by_doubt[:4]) == 4
    assert all(0 < value < 1 for value in picks.uncertainty.values())


def test_pixels_without_data_do_not_count(tmp_path):
    """The oracle is least sure of black, with which the empty parts of a map are filled."""
    rasterio = pytest.importorskip("rasterio", reason='needs the extra: pip install "setr[geo]"')
    parts = [shown(scene(0), 0, sure=200), np.zeros((*scene(0).shape, 3), np.uint8)]
    parts[0] = np.maximum(parts[0], 1)  # no pixel of it is empty
    images = {"all": parts[:1], "half": parts, "none": parts[1:]}
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)
    for name, columns in images.items():
        bands = np.concatenate(columns, axis=1).transpose(2, 0, 1)
        shape = {"count": 3, "height": bands.shape[1], "width": bands.shape[2], "dtype": "uint8"}
        place = {"crs": "EPSG:32633", "transform": transform, "nodata": 0}
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", **shape, **place) as file:
            file.write(bands)
    dataset = open_unlabelled(tmp_path, INFO.labels, None, "")
    options: dict[str, Any] = {"workers": 0, "precision": "fp32"}
    picks = pick_images(Oracle(), INFO, dataset, 3, **options)  # type: ignore[arg-type]
    found = {Path(name).stem: picks.uncertainty[n] for n, name in picks.names.items()}
    assert found["half"] == pytest.approx(found["all"], rel=1e-6)
    assert found["all"] > found["none"] == 0
    assert picks.names[picks.chosen[-1]].endswith("none.tif")


def test_the_list_can_be_predicted(photos, capsys, monkeypatch):
    assert pick(photos, "--count", "3") == OK
    out, err = capsys.readouterr()
    assert "3 chosen" in out
    assert "images.txt, images.csv, pick.json, report.html" in err
    lines = (photos / "out" / "images.txt").read_text().splitlines()
    assert len(lines) == 3
    monkeypatch.chdir("/")
    items = find_items([str(photos / "out" / "images.txt")])
    assert [item.place for item in items] == lines
    assert all(Path(item.place).is_file() for item in items)
    assert len(set(output_names(items))) == 3
    found = json.loads((photos / "out" / "pick.json").read_text())
    keys = {"model", "folder", "complete", "images", "protocol", "failed", "chosen"}
    assert set(found) == keys
    assert [chosen["file"] for chosen in found["chosen"]] == lines
    assert all(set(chosen) == {"image", "file", "uncertainty"} for chosen in found["chosen"])
    rows = list(csv.DictReader((photos / "out" / "images.csv").open()))
    values = [float(row["uncertainty"]) for row in rows]
    assert values == sorted(values, reverse=True)
    ranked = {row["rank"]: row["image"] for row in rows if row["rank"]}
    assert [ranked[str(n)] for n in (1, 2, 3)] == [chosen["image"] for chosen in found["chosen"]]
    page = (photos / "out" / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<img") == 9
    titles = page.split("<h3>")[1:]
    for title, chosen in zip(titles, found["chosen"], strict=True):
        assert title.startswith(f"{chosen['image']}: uncertainty {chosen['uncertainty']:.3f}")
    assert pick(photos, "--count", "3", "--json") == OK
    assert json.loads(capsys.readouterr().out) == found


def test_interrupted_and_broken_images(photos, capsys, monkeypatch):
    (photos / "photos" / "a" / "frame 1.png").write_bytes(b"")
    assert pick(photos) == FAILED
    out, err = capsys.readouterr()
    assert "11 chosen" in out
    assert "1 of 12 images failed" in err
    seen = 0
    original = Uncertain.__call__

    def counted(self: Uncertain, scored: ScoredImage) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, scored)

    monkeypatch.setattr(Uncertain, "__call__", counted)
    assert pick(photos) == INTERRUPTED
    out, err = capsys.readouterr()
    assert "4 chosen" in out
    assert "1 of 5 images failed" in err
    assert "the choice is among 4 of 12 images" in err
    found = json.loads((photos / "out" / "pick.json").read_text())
    assert found["complete"] is False
    assert [Path(line.partition(":")[0]).name for line in found["failed"]] == ["frame 1.png"]
    assert len((photos / "out" / "images.txt").read_text().splitlines()) == 4
    page = (photos / "out" / "report.html").read_text()
    assert "<p><b>1 images failed:</b></p>" in page
    assert "Interrupted: the choice is among the images seen until then" in page


@pytest.mark.skipif(os.name != "posix", reason="such names are Unix's")
def test_a_name_of_two_lines_is_in_no_list(photos, capsys):
    (photos / "photos" / "a" / "frame 1.png").rename(photos / "photos" / "a" / "frame\n1.png")
    assert pick(photos) == OK
    assert "not in images.txt: 1 of the chosen images (" in capsys.readouterr().err
    files = (photos / "out" / "images.txt").read_text().splitlines()
    assert len(files) == 11
    assert all(map(os.path.exists, files))
    assert len(json.loads((photos / "out" / "pick.json").read_text())["chosen"]) == 12


def test_wrong_lines(photos, capsys):
    (photos / "photos" / "empty").mkdir()
    for given, text in (
        (["model", str(photos / "none"), "-o", "x"], "none: no such folder"),
        (["model", str(photos / "photos" / "empty"), "-o", "x"], "empty: no images found here"),
        (["model", str(photos / "photos"), "-o", "x", "--count", "0"], "--count 0: give at least"),
        (["model", str(photos / "photos")], "-o is missing"),
    ):
        assert text in refusal(capsys, "pick", *given)


def test_nothing_readable_is_said_of_the_folder(photos):
    for path in (photos / "photos").rglob("*.png"):
        path.write_text("no image")
    dataset = open_unlabelled(photos / "photos", INFO.labels, None, "")
    with pytest.raises(DataError, match="none of the 12 images of photos could be tested"):
        pick_images(Oracle(), INFO, dataset, 3, workers=0)


def test_lists_of_images(tmp_path, monkeypatch):
    """Names are paths below the common folder, so equal file names stay apart."""
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.png", "x/y/a.png", "deep/b 1.png", "deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(np.zeros((4, 4), np.uint8)))
    (tmp_path / "list.txt").write_text(f"x/a.png\n\n{tmp_path}/x/y/a.png\r\n  gone.png\ndeep\n")
    items = find_items(["list.txt"])
    assert [item.name for item in items] == ["x/a.png", "x/y/a.png", "gone.png", "b 1.png", "c.png"]
    assert items[2].stamp == "missing"
    (tmp_path / "one.txt").write_text("x/y/a.png")
    assert [item.name for item in find_items(["one.txt"])] == ["a.png"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SetrError, match=r"empty\.txt: no images found"):
        find_items(["empty.txt"])
