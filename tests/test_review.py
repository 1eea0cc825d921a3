"""`setr review`: labels that contradict a model are found, named and ranked."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import setr
from setr.cli import main
from setr.data import scenes
from setr.data.dataset import Sample
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, FAILED, INTERRUPTED, OK, USAGE
from setr.evaluation import evaluate_split
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.inference import NormalizedImages, Protocol, predict_scores
from setr.labels import IGNORE, Labels
from setr.model_info import ModelInfo
from setr.review import Reviewer, likelihood, review_split
from setr.scores import scored_images
from setr.scores.boundary import fill_ignored
from setr.scores.label_quality import (
    MAX_REGIONS,
    label_quality,
    reach,
    soft_minimum,
    suspicious_regions,
)
from setr.scores.misplaced import find_misplaced
from tests.conftest import tiny_model
from tests.test_report import Balanced

STEP = 25
"""Red of a pixel whose class is 1; that of class k is k times as much."""
NAMES = tuple(scenes.CLASSES)
INFO = ModelInfo(labels=scenes.LABELS, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SIDE = 96


class Oracle(nn.Module):
    """Knows the class of each pixel from its red value, the surer the greener it is."""

    num_classes = len(NAMES)

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        red, green = 255 * images[:, :1], images[:, 1:2]
        classes = torch.arange(self.num_classes).view(1, -1, 1, 1)
        return -((red / STEP - classes) ** 2) * (1 + 20 * green) * self.factor


def filled(mask: np.ndarray) -> np.ndarray:
    """A scene's classes without ignored pixels."""
    ids = fill_ignored(mask, 4.0)
    ids[ids == IGNORE] = 0
    return ids


def shown(ids: np.ndarray, seed: int = 0, sure: int = 255) -> np.ndarray:
    """The image in which the oracle sees these classes; `seed` makes images differ."""
    image = np.full((*ids.shape, 3), sure, np.uint8)
    image[..., 0] = STEP * ids
    image[..., 2] = np.random.default_rng(seed).integers(0, 255, ids.shape)
    return image


def shifted(ids: np.ndarray, right: int, down: int = 0) -> np.ndarray:
    """A label moved within the image; what comes in is ignored."""
    moved = np.float32([[1, 0, right], [0, 1, down]])
    size = ids.shape[::-1]
    return np.asarray(cv2.warpAffine(ids, moved, size, flags=cv2.INTER_NEAREST, borderValue=IGNORE))


def scene(number: int) -> np.ndarray:
    """The classes of scene `number`."""
    return filled(scenes.draw("val", number, size=SIDE)[1])


def corrupted(count: int = 30) -> tuple[list[Sample], dict[int, str]]:
    """Scenes of which some labels are wrong, and what is wrong with these."""
    truths = [scene(i) for i in range(count)]
    samples = [Sample(shown(ids, i), ids.copy()) for i, ids in enumerate(truths)]
    kinds = {3: "shifted", 7: "mirrored", 8: "upside down", 11: "swapped", 12: "swapped"}
    labels = {
        3: shifted(truths[3], 20, -9),
        7: truths[7][:, ::-1],
        8: truths[8][::-1],
        11: truths[12],
        12: truths[11],
    }
    for number in (15, 21):  # the road is labelled as a building
        kinds[number] = "class"
        road, building = NAMES.index("road"), NAMES.index("building")
        labels[number] = np.where(truths[number] == road, building, truths[number]).astype(np.uint8)
    kinds[24] = "one class"
    labels[24] = np.zeros_like(truths[24])
    kinds[26] = "erased"
    labels[26] = truths[26].copy()
    labels[26][-30:, :40] = NAMES.index("sky")
    kinds[28] = kinds[29] = "copy"
    samples[28] = samples[29]
    labels[28] = truths[29].copy()
    labels[28][:4, :4] = NAMES.index("car")  # too small to be a region
    for number, label in labels.items():
        samples[number] = Sample(samples[number].image, np.ascontiguousarray(label))
    return samples, kinds


def reviewed(samples: list[Sample], **options: Any) -> Any:
    dataset = setr.wrap_dataset(samples, scenes.LABELS, "val")
    return review_split(Oracle(), INFO, dataset, workers=0, precision="fp32", **options)


# --- one label ------------------------------------------------------------------------------------


def test_the_soft_minimum_is_that_of_the_paper():
    p = np.array([0.9, 0.8, 0.05, 1.0], np.float32)
    weights = [math.exp((1 - float(v)) / 0.1) for v in p]
    expected = sum(w * float(v) for w, v in zip(weights, p, strict=True)) / sum(weights)
    assert soft_minimum(p) == pytest.approx(expected, rel=1e-5)
    assert soft_minimum(np.zeros(5, np.float32)) == 0
    assert soft_minimum(np.ones(1, np.float32)) == 1
    assert soft_minimum(np.empty(0, np.float32)) is None


def test_quality_by_hand():
    truth = np.zeros((40, 40), np.uint8)
    truth[0, 0] = IGNORE
    p = np.full(truth.shape, 0.9, np.float32)
    p[0, 0] = 0.0  # ignored
    assert label_quality(truth, p) == pytest.approx(0.9)
    p[5, 5] = 0.1
    good, bad = 40 * 40 - 2, math.exp(0.8 / 0.1)
    expected = (good * 0.9 + bad * 0.1) / (good + bad)
    assert label_quality(truth, p) == pytest.approx(expected, rel=1e-4)
    assert label_quality(np.full_like(truth, IGNORE), p) is None


def test_near_is_a_share_of_the_diagonal():
    assert reach((3, 4)) == 1
    assert reach((360, 480)) == 4
    assert reach((1024, 2048)) == 17


def test_regions_by_hand():
    truth = np.zeros((100, 100), np.uint8)
    truth[:, 60:] = 1
    prediction = truth.copy()
    prediction[20:30, 10:18] = 2  # an object without a label
    prediction[:, 59] = 1  # a border drawn otherwise
    prediction[70:90, 70:80] = 0  # labelled, but not there
    prediction[95:, :5] = 3
    truth[95:, :5] = IGNORE
    confidence, likelihoods = np.full((2, 100, 100), 0.9, np.float32)
    likelihoods[prediction != truth] = 0.05
    confidence[25:30, 10:18] = 0.7
    regions = suspicious_regions(truth, prediction, confidence, likelihoods)
    larger, object_ = regions
    assert object_.tolist() == pytest.approx((0, 2, 80, 10, 20, 8, 10, 0.8, 0.05))
    assert larger.tolist() == pytest.approx((1, 0, 200, 70, 70, 10, 20, 0.9, 0.05))
    assert len(suspicious_regions(truth, truth, confidence, likelihoods)) == 0


def test_regions_per_image_are_limited_to_the_worst():
    truth = np.zeros((200, 200), np.uint8)
    prediction = truth.copy()
    spots = [(y, x) for y in range(0, 200, 20) for x in range(0, 200, 20)]
    for number, (y, x) in enumerate(spots):
        prediction[y : y + 5 + number // 20, x : x + 5] = 1
    ones = np.ones(truth.shape, np.float32)
    regions = suspicious_regions(truth, prediction, ones, 0 * ones)
    assert len(regions) == MAX_REGIONS < len(spots)
    assert (np.diff(regions["pixels"]) <= 0).all()


@pytest.mark.parametrize(
    ("right", "down"), [(20, 0), (-20, 0), (0, 13), (7, -11), (-30, 25), (40, 0), (6, 0)]
)
@pytest.mark.parametrize("size", [96, 400])
def test_shifts_are_found_to_the_pixel(right, down, size):
    ids = cv2.resize(scene(5), (size, size), interpolation=cv2.INTER_NEAREST)
    factor = 1 if size == SIDE else 3
    found = find_misplaced(shifted(ids, right * factor, down * factor), ids)
    assert found is not None
    assert (found.kind, found.right, found.down) == ("shifted", right * factor, down * factor)
    assert found.after == 1
    assert found.before < 0.95


def test_mirrored_and_turned_labels_are_found():
    ids = scene(4)
    for kind, label in (
        ("mirrored", ids[:, ::-1]),
        ("upside down", ids[::-1]),
        ("turned around", ids[::-1, ::-1]),
        ("turned left", np.rot90(ids)),
        ("turned right", np.rot90(ids, -1)),
        ("transposed", ids.T),
    ):
        found = find_misplaced(np.ascontiguousarray(label), ids)
        assert found is not None
        assert (found.kind, found.after) == (kind, 1)
        assert (found.right, found.down) == (0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (20, 3000), (700, 3)])
def test_any_shape_is_examined(shape):
    rng = np.random.default_rng(0)
    label, seen = rng.integers(0, 3, (2, *shape)).astype(np.uint8)
    assert find_misplaced(label, seen) is None
    ones = np.ones(shape, np.float32)
    regions = suspicious_regions(label, seen, ones, 0 * ones)
    assert regions["pixels"].sum() <= np.count_nonzero(label != seen)
    assert label_quality(label, ones) == 1


def test_what_is_wrong_otherwise_is_not_called_shifted():
    """A shift or a mirror that moves the contradictions out of the image explains nothing."""
    ids = scene(6)
    assert find_misplaced(ids, ids) is None
    assert find_misplaced(np.full_like(ids, IGNORE), ids) is None
    for part in (np.s_[:, :25], np.s_[:, 70:], np.s_[:20], np.s_[75:], np.s_[20:60, 20:60]):
        wrong = ids.copy()
        wrong[part] = (wrong[part] + 1) % 9
        assert find_misplaced(wrong, ids) is None
    noise = np.random.default_rng(0).integers(0, 9, ids.shape).astype(np.uint8)
    assert find_misplaced(ids, noise) is None


# --- a split --------------------------------------------------------------------------------------


def test_all_wrong_labels_and_no_others_are_found():
    samples, kinds = corrupted()
    review = reviewed(samples)
    assert {suspect.number for suspect in review.suspects} == set(kinds)
    by_number = {suspect.number: suspect for suspect in review.suspects}
    for number, kind in kinds.items():
        found = by_number[number]
        names = [finding.kind for finding in found.findings]
        if kind in ("class", "erased"):
            assert names == []
            assert found.regions["pixels"].sum() > 300
        else:
            assert kind in names
    elsewhere = [suspect.number for suspect in review.suspects if suspect.is_elsewhere]
    assert set(elsewhere) == {3, 7, 8, 11, 12} == {s.number for s in review.suspects[:5]}
    right = [row.quality for number, row in review.rows.items() if number not in kinds]
    assert min(right) > 0.9
    wrong = [by_number[n].looked.quality for n, k in kinds.items() if k != "copy"]
    assert max(wrong) < 0.01
    shift = next(f for f in by_number[3].findings if f.kind == "shifted")
    assert (shift.values["right"], shift.values["down"]) == (20, -9)
    assert "20 px right and 9 px up" in shift.text
    for one, two in ((11, 12), (12, 11)):
        (swap,) = (f for f in by_number[one].findings if f.kind == "swapped")
        assert swap.values["image"] == review.rows[two].name
    (copy,) = by_number[29].findings
    assert copy.values == {"image": review.rows[28].name, "difference": 16 / SIDE**2}


def test_regions_need_the_confidence_that_the_class_has_where_it_is_labelled():
    """The oracle is unsure of both objects without a label, but of cars it is never surer."""
    car, person = NAMES.index("car"), NAMES.index("person")
    truth, seen = np.full((2, 64, 64), NAMES.index("grass"), np.uint8)
    seen[8:20, 8:20], seen[40:52, 40:52] = car, person
    sure = np.full((64, 64), 255, np.uint8)
    sure[:32, :32] = sure[32:, 32:] = 15
    labelled, doubts = truth.copy(), np.full((64, 64), 255, np.uint8)
    labelled[8:20, 8:20], labelled[40:52, 40:52] = car, person
    doubts[8:20, 8:20] = 15
    images = [shown(seen, 0), shown(labelled, 1)]
    for image, green in zip(images, (sure, doubts), strict=True):
        image[..., 1] = green
    review = reviewed([Sample(images[0], truth), Sample(images[1], labelled)])
    scores = Oracle()(torch.from_numpy(images[1]).permute(2, 0, 1)[None] / 255)
    p = scores.softmax(1)[0].detach().numpy()
    for k in (car, person):
        assert review.thresholds[k] == pytest.approx(p[k][labelled == k].mean(), rel=1e-5)
    assert review.thresholds[car] < 0.9 < review.thresholds[person]
    assert np.isnan(review.thresholds[NAMES.index("sky")])
    (suspect,) = review.suspects
    assert suspect.regions["predicted"].tolist() == [car]
    assert {int(r["predicted"]) for r in review.rows[0].regions} == {car, person}


def test_ignored_labels_have_no_quality():
    samples = [Sample(shown(scene(0)), scene(0)), Sample(shown(scene(1), 1), scene(1))]
    samples[0].mask[:] = IGNORE
    review = reviewed(samples)
    assert review.rows[0].quality is None
    assert review.rows[0].agreement is None
    assert review.rows[1].quality > 0.9
    assert review.suspects == []


@pytest.mark.parametrize(
    "protocol", [Protocol(), Protocol(window=(32, 32), stride=(24, 24)), Protocol().multi_scale()]
)
def test_likelihoods_are_those_of_the_scores(protocol):
    torch.manual_seed(0)
    model = tiny_model("naive", num_classes=9).eval()
    ids = scene(2)
    ids[:5] = IGNORE
    image = shown(ids)
    dataset = setr.wrap_dataset([Sample(image, ids)], scenes.LABELS, "val")
    info = dataclasses.replace(INFO, protocol=protocol)
    seen: list[scored_images.ScoredImage] = []
    plain: list[scored_images.ScoredImage] = []
    options: dict[str, Any] = {"precision": "fp32", "workers": 0, "detailed": False}
    evaluate_split(model, info, dataset, measure=likelihood, on_image=seen.append, **options)
    evaluate_split(model, info, dataset, on_image=plain.append, **options)
    x = NormalizedImages(torch.from_numpy(image[None]), info.mean, info.std)
    with torch.inference_mode():
        p = predict_scores(model, x, protocol).softmax(1)[0]
    expected = p.gather(0, torch.from_numpy(ids).long().clamp(max=8)[None])[0]
    expected[:5] = 1
    (scored,) = seen
    assert scored.measured is not None
    assert scored.confidence is not None
    torch.testing.assert_close(torch.from_numpy(scored.measured), expected)
    torch.testing.assert_close(torch.from_numpy(scored.confidence), p.amax(0))
    assert plain[0].measured is None
    assert plain[0].confidence is None
    np.testing.assert_array_equal(plain[0].prediction, scored.prediction)


def test_memory_does_not_grow_with_pixels():
    """Of each image about a kilobyte stays, whatever its size; pictures are few and small."""
    for side in (64, 512):
        reviewer = Reviewer(9, shown=2)
        for number in range(6):
            ids = cv2.resize(scene(number), (side, side), interpolation=cv2.INTER_NEAREST)
            wrong = ids.copy()
            wrong[: side // 2] = 0
            likelihoods = np.where(wrong == ids, 0.9, 0.1).astype(np.float32)
            sure = np.full(ids.shape, 0.9, np.float32)
            image = shown(ids, number)
            figures: dict[str, float | None] = {"miou": None, "pixel_accuracy": None}
            reviewer(
                scored_images.ScoredImage(
                    number, "x.png", image, wrong, ids, sure, figures, likelihoods
                )
            )
        reviewer.finish()
        for row in reviewer.rows.values():
            arrays = (row.regions, row.maps, *row.sums)
            assert sum(array.nbytes for array in arrays) < 2500
            assert all(array.base is None or array.base.nbytes < 10_000 for array in arrays)
        assert len(reviewer.pictures) == 2
        assert not reviewer._pending


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The corrupted scenes as files, and an oracle under the name of a model."""
    samples, _ = corrupted()
    for number, (image, mask) in enumerate(samples):
        for kind, array in (("images", image), ("labels", mask)):
            path = tmp_path / "data" / kind / "val" / f"scene_{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(array))
    names = ", ".join(NAMES)
    (tmp_path / "data" / "data.yaml").write_text(f"classes: [{names}]\nignore: 255\n")
    (tmp_path / "model").mkdir()

    def load(path: str, **_: object) -> SimpleNamespace:
        assert path == str(tmp_path / "model")
        return SimpleNamespace(model=Oracle(), info=INFO)

    monkeypatch.setattr("setr.loading.load", load)
    return tmp_path


def review(folder: Path, *more: str) -> int:
    return main(
        ["review", str(folder / "model"), str(folder / "data"), "--workers", "0", *more]
    )  # fmt: skip


def test_the_command_writes_what_was_found(folder, capsys):
    assert review(folder) == OK
    out, err = capsys.readouterr()
    first, second = out.splitlines()[:2]
    assert first.startswith("0.0")
    assert "images/val/scene_" in first
    assert second.startswith("        ")
    assert "label is shifted 20 px right and 9 px up (agreement" in out
    assert "        building looks like road: " in out
    assert "  building → road: 3 regions in 2 images, " in out
    assert "car → tree" not in out  # in labels that are displaced
    assert "11 of 30 labels look wrong in a part or as a whole" in out
    results = folder / "model" / "review-val"
    assert f"written to {results}: review.json, images.csv, report.html" in err
    found = json.loads((results / "review.json").read_text())
    assert set(found) == {
        *("model", "data", "split", "complete", "images", "protocol", "failed", "thresholds"),
        *("confused", "suspects"),
    }
    assert (found["complete"], found["images"], found["failed"]) == (True, 30, [])
    assert found["thresholds"].keys() == set(NAMES)
    assert len(found["suspects"]) == 11
    for suspect in found["suspects"]:
        assert set(suspect) == {"image", "quality", "agreement", "findings", "regions"}
        assert 0 <= suspect["quality"] <= 1
        for finding in suspect["findings"]:
            assert {"kind", "text"} < set(finding)
        for region in suspect["regions"]:
            assert set(region) == {
                *("given", "predicted", "pixels", "left", "top", "width", "height"),
                *("confidence", "likelihood"),
            }
    pair = next(
        p for p in found["confused"] if (p["given"], p["predicted"]) == ("building", "road")
    )
    assert pair["images"] == 2
    assert 0 < pair["share"] <= 1
    rows = list(csv.DictReader((results / "images.csv").open()))
    assert len(rows) == 30
    assert [row["image"] for row in rows[:11]] == [s["image"] for s in found["suspects"]]
    assert "shifted" in {row["findings"] for row in rows}
    rest = [float(row["quality"]) for row in rows[11:]]
    assert rest == sorted(rest)
    page = (results / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<img") >= 4 * 11
    assert "http" not in page.replace("http-equiv", "")
    assert review(folder, "--json", "-o", str(folder / "again")) == OK
    again = json.loads(capsys.readouterr().out)
    assert again == found


def test_a_broken_image_is_named_and_left_out(folder, capsys):
    (folder / "data" / "images" / "val" / "scene_05.png").write_bytes(b"")
    assert review(folder) == FAILED
    out, err = capsys.readouterr()
    assert "11 of 29 labels" in out
    assert "scene_05.png" in err
    assert "1 of 30 images failed" in err
    found = json.loads((folder / "model" / "review-val" / "review.json").read_text())
    assert len(found["failed"]) == 1


def test_an_interrupted_review_keeps_what_it_saw(folder, capsys, monkeypatch):
    seen = 0
    original = Reviewer.__call__

    def counted(self: Reviewer, scored: scored_images.ScoredImage) -> None:
        nonlocal seen
        seen += 1
        if seen == 9:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, scored)

    monkeypatch.setattr(Reviewer, "__call__", counted)
    assert review(folder) == INTERRUPTED
    out, err = capsys.readouterr()
    assert "interrupted; the results are of 9 of 30 images" in err
    assert "3 of 9 labels look wrong" in out
    found = json.loads((folder / "model" / "review-val" / "review.json").read_text())
    assert (found["complete"], found["images"]) == (False, 9)
    assert len(list(csv.DictReader((folder / "model" / "review-val" / "images.csv").open()))) == 9


def test_wrong_lines_are_one_line(folder, capsys):
    for more, code, text in (
        (["--split", "test"], DATA_CHECK_FAILED, "test"),
        (["--workers", "-1"], USAGE, "--workers -1: give 0 or more"),
        (["--protocol", "papr-ss"], USAGE, "did you mean 'paper-ss'"),
        (["--min-pixels", "3"], USAGE, "--min-pixels"),
    ):
        assert review(folder, *more) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("setr: ")
        assert text in err
        assert err.count("\n") == 1
    assert not (folder / "model" / "review-val").exists()


def test_results_do_not_replace_those_of_a_model(tmp_path, capsys):
    model = tiny_model("naive", num_classes=9)
    save_pretrained(tmp_path / "m", model, ModelInfo(labels=scenes.LABELS))
    assert main(["review", str(tmp_path / "m"), "scenes:20", "-o", str(tmp_path / "m")]) == USAGE
    assert "or leave -o out for review-val in it" in capsys.readouterr().err
    other = ModelInfo(labels=Labels(tuple("abcdefghi")))
    save_pretrained(tmp_path / "other", model, other)
    assert main(["review", str(tmp_path / "other"), "scenes:20"]) == DATA_CHECK_FAILED
    assert "class 0 is 'a' in the model" in capsys.readouterr().err


# --- real data ------------------------------------------------------------------------------------


def test_the_shifted_label_of_camvid_is_found(shared):
    """The published label of a frame is 90 pixels off; those of its neighbours play the model."""
    dataset = open_dataset(str(shared / "data" / "camvid"), "test", "camvid")
    names = [dataset.image_name(i) for i in range(len(dataset))]
    place = next(i for i, name in enumerate(names) if "Seq05VD_f02610" in name)
    label = dataset.load(place).mask
    for neighbour in (place - 1, place + 1):
        ids = dataset.load(neighbour).mask
        found = find_misplaced(label, np.where(ids == IGNORE, 0, ids).astype(np.uint8))
        assert found is not None
        assert (found.kind, found.down) == ("shifted", 0)
        assert -95 < found.right < -80
