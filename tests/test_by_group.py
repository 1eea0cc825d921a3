"""Figures of groups of images: patients, videos, places."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from setr.cli import main
from setr.errors import OK, USAGE, SetrError
from setr.evaluation import evaluate as evaluate_with_workers
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.labels import IGNORE, Labels
from setr.metrics import confusion
from setr.model_info import ModelInfo
from setr.scores.by_group import GroupCounts, Groups, paired_groups
from setr.scores.intervals import mean_interval
from setr.scores.scorecard import Scorecard
from setr.writing import write_bytes
from tests.conftest import tiny_model
from tests.test_evaluation import by_two_processes

CLASSES = ("healthy", "lesion")
PATTERN = "images/*_{any}"
evaluate = functools.partial(evaluate_with_workers, workers=0, precision="fp32")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of two classes, and three patients with four, two and one slices."""
    root = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = tiny_model("naive", num_classes=2)
        save_pretrained(root / name, model, ModelInfo(labels=Labels(CLASSES)))
    rng = np.random.default_rng(0)
    for patient, slices in (("anna", 4), ("bert", 2), ("cleo", 1)):
        for number in range(slices):
            mask = np.zeros((40, 40), np.uint8)
            mask[5:20, 5 : 10 + 3 * number] = 1
            image = rng.integers(0, 200, (40, 40, 3), dtype=np.uint8) + 55 * mask[..., None]
            for folder, picture in (("images", image), ("labels", mask)):
                file = root / "data" / folder / f"{patient}_{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, encode_png(picture))
    write_bytes(root / "data" / "data.yaml", b"val: images\nclasses: [healthy, lesion]\n")
    return root


def matrix(prediction: list[int], truth: list[int]) -> np.ndarray:
    counts = confusion(torch.tensor(prediction), torch.tensor(truth), 2)
    return counts[:2].numpy()


def test_a_group_counts_once_whatever_its_images():
    groups = Groups.by_name(["images/a_1.png", "images/a_2.png", "images/b_1.png"], PATTERN)
    assert (groups.names, groups.of_image) == (("a", "b"), (0, 0, 1))
    counts = GroupCounts(groups, 2)
    counts.update(0, matrix([1, 1, 0, 0], [1, 0, 0, 0]))
    counts.update(1, matrix([1, 1, 0, 0], [1, 1, 1, 0]))
    counts.update(2, matrix([1, 0, 0, 0], [0, 0, 0, 1]))
    found = counts.summary(CLASSES)
    lesion = 2 * 3 / (4 + 4)  # of both slices of a together
    assert found["each"]["a"]["images"] == 2
    assert found["each"]["a"]["dice"]["lesion"] == pytest.approx(lesion)
    assert found["each"]["b"]["dice"]["lesion"] == 0
    assert found["dice"]["lesion"]["mean"] == pytest.approx(lesion / 2)
    assert found["dice"]["lesion"]["groups"] == 2
    assert found["iou"]["lesion"]["mean"] == pytest.approx(3 / 5 / 2)


def test_a_class_that_a_group_lacks_has_no_dice_there():
    groups = Groups.by_name(["a_1", "b_1", "c_1"], "*_{any}")
    counts = GroupCounts(groups, 2)
    counts.update(0, matrix([1, 0], [1, 0]))
    counts.update(1, matrix([0, 0], [0, 0]))  # c_1 could not be read
    found = counts.summary(CLASSES)
    assert list(found["each"]) == ["a", "b"]
    assert found["each"]["b"]["dice"] == {"healthy": 1.0, "lesion": None}
    assert found["dice"]["lesion"] == {"mean": 1.0, "interval": None, "groups": 1}
    assert GroupCounts(groups, 2).summary(CLASSES)["dice"]["lesion"]["mean"] is None


def test_groups_of_one_image_have_the_intervals_of_images():
    names = [f"{i:02d}" for i in range(12)]
    cards = Scorecard(CLASSES), Scorecard(CLASSES, groups=Groups.by_name(names, "*"))
    rng = np.random.default_rng(0)
    for index in range(12):
        pair = [torch.from_numpy(rng.integers(0, 2, (20, 20), dtype=np.uint8)) for _ in range(2)]
        for card in cards:
            card.update(index, *pair)
    single, grouped = (card.summary() for card in cards)
    assert grouped.pop("groups")["by"] == "*"
    assert grouped == single


def test_a_single_group_with_labels_has_no_interval():
    card = Scorecard(CLASSES, groups=Groups.by_name(["a_1", "a_2", "b_1"], "*_{any}"))
    rng = np.random.default_rng(0)
    for index in range(3):
        prediction, truth = (
            torch.from_numpy(rng.integers(0, 2, (9, 9), dtype=np.uint8)) for _ in range(2)
        )
        card.update(index, prediction, truth if index < 2 else torch.full_like(truth, IGNORE))
    figures = card.summary()
    assert figures["intervals"]["miou"] is None
    card.update(2, prediction, truth)
    low, high = card.summary()["intervals"]["miou"]
    assert low < high


def test_the_interval_of_a_mean_is_that_of_drawing_with_replacement():
    values = np.random.default_rng(1).normal(0.7, 0.1, 40)
    low, high = mean_interval(values) or (0, 0)
    spread = values.std() / np.sqrt(40)
    assert low == pytest.approx(values.mean() - 1.96 * spread, abs=0.1 * spread)
    assert high == pytest.approx(values.mean() + 1.96 * spread, abs=0.1 * spread)
    assert mean_interval(values[:1]) is None


def test_models_are_compared_over_groups():
    groups = Groups.by_name([f"{i}_0" for i in range(10)], "*_{any}")
    better, worse = GroupCounts(groups, 2), GroupCounts(groups, 2)
    for i in range(10):
        better.update(i, matrix([0] * 10 + [1] * 10, [0] * 10 + [1] * 10))
        worse.update(i, matrix([0] * (11 + i % 2) + [1] * (9 - i % 2), [0] * 10 + [1] * 10))
    found = paired_groups(better.summary(CLASSES), worse.summary(CLASSES))
    assert (found["groups"], found["better"]) == (10, 1.0)
    assert found["p"] < 0.01
    dice = (2 * 9 / 19 + 2 * 8 / 18) / 2
    assert found["dice"]["lesion"]["difference"] == pytest.approx(1 - dice)
    assert "images" not in found["dice"]["lesion"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("images/q*_{any}", r"--group-by images/q\*_\{any\}: 7 of 7 images do not fit, as images"),
        ("images/{any}_{any}", r"all images are in one group; it takes two or more"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused_before_the_test(scans, capsys, pattern, message):
    with pytest.raises(SetrError, match=message):
        evaluate(scans / "one", scans / "data", group_by=pattern)
    arguments = ["eval", str(scans / "one"), str(scans / "data"), "--group-by", pattern]
    assert main([*arguments, "-o", str(scans / "refused")]) == USAGE
    assert not (scans / "refused").exists()
    assert "--group-by" in capsys.readouterr().err


def test_the_command_writes_and_compares_groups(scans, tmp_path, capsys):
    words = ["eval", str(scans / "one"), str(scans / "data"), "--workers", "0", "-o", str(tmp_path)]
    compared = [*words, "--group-by", PATTERN, "--compare", str(scans / "two")]
    assert main(compared) == OK
    shown = capsys.readouterr()
    assert "bootstrap over groups" in shown.out
    assert "Dice of the average group (images/*_{any}, 3 groups):" in shown.out
    assert "one against two: " in shown.out
    assert " Dice of lesion per group (p = " in shown.out
    assert "groups.csv" in shown.err
    with open(tmp_path / "groups.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["images"]) for row in rows] == [
        ("anna", "4"), ("bert", "2"), ("cleo", "1"),
    ]  # fmt: skip
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    figures = metrics["single_scale"]["groups"]
    for row in rows:
        dice = figures["each"][row["group"]]["dice"]["lesion"]
        assert float(row["dice lesion"]) == pytest.approx(dice)
    against = metrics["compare"][str(scans / "two")]["against"]
    assert against["groups"] == 3
    page = (tmp_path / "report.html").read_text()
    assert "Dice of the average group" in page
    each = page.partition("Dice per group")[2].partition("</table>")[0]
    assert "<th scope=col class=n>lesion</th>" in each
    assert 'class="bar"' not in each  # many classes would be as wide as as many bars
    assert "cleo" in page
    assert main(words) == OK  # without groups, those of an earlier test do not stay
    assert not (tmp_path / "groups.csv").exists()


def test_two_processes_give_the_groups_and_thresholds_of_one(scans, tmp_path):
    single = evaluate(scans / "one", scans / "data", group_by=PATTERN)
    assert single["thresholds"]["class"] == "lesion"
    for several in by_two_processes(scans, tmp_path, group_by=PATTERN):
        for key in ("groups", "thresholds", "regions", "intervals"):
            assert several[key] == json.loads(json.dumps(single[key]))


def test_label_images_are_scored_by_group(scans, tmp_path, capsys):
    labels = scans / "data" / "labels"
    words = ["score", str(labels), str(labels), "--num-classes", "2", "--group-by", "*_{any}"]
    assert main(words) == OK
    assert "  1: 100.00 (95 % interval 100.00 to 100.00, 3 groups)" in capsys.readouterr().out
    assert main([*words, "--json"]) == OK
    figures = json.loads(capsys.readouterr().out)
    assert figures["groups"]["each"]["bert"]["dice"] == {"0": 1.0, "1": 1.0}
    assert figures["kappa"] == 1.0
