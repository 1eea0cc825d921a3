"""`setr score`: label images against truth, with the official figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from setr.cli import main
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE
from setr.images import encode_png
from setr.writing import write_bytes


def save(folder: Path, **images: list | np.ndarray) -> Path:
    """Write small label images NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in images.items():
        write_bytes(folder / f"{name}.png", encode_png(np.array(ids, np.uint8)))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    prediction = save(tmp_path / "pred", a=[[0, 1, 1]], b=[[1, 1, 0]])
    truth = save(tmp_path / "gt", a=[[0, 1, 0]], b=[[1, 255, 0]])
    return prediction, truth


def score(capsys: pytest.CaptureFixture, *arguments: object) -> dict:
    assert main(["score", *map(str, arguments), "--json"]) == OK
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    code = main(["score", *map(str, arguments)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("setr: ")]
    return code, lines[0]


def test_camvid_equals_the_referees(shared, capsys):
    folder = shared / "data" / "metric_cases" / "camvid"
    figures = score(
        capsys, folder / "pred", folder / "gt", "--num-classes", 11, "--ignore-index", 11
    )
    assert figures["miou"] == pytest.approx(0.67086744, abs=1e-8)
    assert figures["pixel_accuracy"] == pytest.approx(0.91448798, abs=1e-8)
    assert figures["mean_accuracy"] == pytest.approx(0.76721613, abs=1e-8)
    assert figures["frequency_weighted_iou"] == pytest.approx(0.84817014, abs=1e-8)
    assert figures["iou"]["2"] == pytest.approx(0.131204, abs=1e-6)


@pytest.mark.parametrize(("absent", "miou"), [("skip", 1.0), ("zero", 0.1)])
def test_ade20k_equals_its_server(shared, capsys, absent, miou):
    folder = shared / "data" / "metric_cases" / "ade_shipped"
    figures = score(
        capsys, folder / "pred", folder / "gt", "--num-classes", 150, "--reduce-zero-label",
        "--absent", absent,
    )  # fmt: skip
    assert figures["miou"] == pytest.approx(miou, abs=1e-12)
    assert figures["pixel_accuracy"] == 1.0
    assert figures["absent"] == absent


def test_predictions_that_are_classes_beside_truth_with_zero_for_the_rest(tmp_path, capsys):
    """Hugging Face evaluate's `mean_iou` with reduce_labels, which only the truth is reduced by."""
    rng = np.random.default_rng(0)
    hits, rows, columns = np.zeros(4), np.zeros(4), np.zeros(4)
    for number in range(3):
        truth = rng.integers(0, 4, (20, 30)).astype(np.uint8)  # 0: other; no pixel of class 3
        pred = rng.integers(0, 4, (20, 30)).astype(np.uint8)
        save(tmp_path / "truth", **{f"{number}": truth})
        save(tmp_path / "pred", **{f"{number}": pred})
        counted = truth > 0
        pairs = pred[counted], truth[counted] - 1
        hits += np.bincount(pairs[0][pairs[0] == pairs[1]], minlength=4)
        columns += np.bincount(pairs[0], minlength=4)
        rows += np.bincount(pairs[1], minlength=4)
    figures = score(
        capsys, tmp_path / "pred", tmp_path / "truth", "--num-classes", 4, "--reduce-zero-label",
        "--class-ids",
    )  # fmt: skip
    iou = hits / (rows + columns - hits)
    assert list(figures["iou"].values()) == pytest.approx(list(iou))
    assert iou[3] == 0  # only predicted: in the mean here, which Ultralytics leaves out
    assert figures["miou"] == pytest.approx(iou.mean())
    assert figures["pixel_accuracy"] == pytest.approx(hits.sum() / rows.sum())


def test_figures_and_table(folders, capsys):
    figures = score(capsys, *folders, "--num-classes", 3)
    assert figures["iou"] == {"0": 2 / 3, "1": 2 / 3, "2": None}
    assert figures["images"] == 2
    assert figures["failed"] == []
    assert main(["score", *map(str, folders), "--num-classes", "3"]) == OK
    table = capsys.readouterr().out
    assert "66.67" in table
    assert "1 of 3 classes do not occur" in table
    assert "--absent zero" in table


def test_label_map(tmp_path, capsys):
    """As for Cityscapes: ids in files are not training ids; a predicted void pixel is wrong."""
    prediction = save(tmp_path / "pred", x=[[7, 7, 8, 0, 200]])
    truth = save(tmp_path / "gt", x=[[7, 8, 8, 8, 0]])
    mapping = tmp_path / "map.yaml"
    mapping.write_text("classes: [road, walk]\nlabel_map: {0: ignore, 7: road, 8: walk}\n")
    figures = score(capsys, prediction, truth, "--label-map", mapping)
    assert figures["iou"] == {"road": 1 / 2, "walk": 1 / 3}
    assert figures["pixel_accuracy"] == 1 / 2
    bare = tmp_path / "map.json"
    bare.write_text(json.dumps({"0": "ignore", "7": 0, "8": 1}))
    figures = score(capsys, prediction, truth, "--label-map", bare, "--num-classes", 2)
    assert figures["iou"] == {"0": 1 / 2, "1": 1 / 3}


def test_a_data_yaml_and_what_predict_writes(tmp_path, capsys):
    """Truth has the data set's ids or colours, predictions have class numbers."""
    (tmp_path / "data.yaml").write_text(
        "\ufeffclasses: [no, yes]\nlabel_map: {0: no, 255: yes}\nignore: 7\n", encoding="utf-8"
    )
    prediction = save(tmp_path / "pred", x=[[0, 1, 1, 1]])
    truth = save(tmp_path / "gt", x=[[0, 255, 255, 7]])
    options = (prediction, truth, "--label-map", tmp_path)
    figures = score(capsys, *options, "--class-ids")
    assert figures["iou"] == {"no": 1.0, "yes": 1.0}
    ids = save(tmp_path / "ids", x_ids=[[0, 1, 1, 1]])
    assert score(capsys, ids, *options[1:], "--class-ids")["iou"] == figures["iou"]
    assert main(["score", *map(str, options)]) == OK
    assert "predicted ids of 66.67 % of the pixels are no class" in capsys.readouterr().out
    (tmp_path / "data.yaml").write_text(
        "classes: {no: [0, 0, 0], yes: [9, 8, 7]}\ncolour_map: classes\n"
    )
    colours = np.array([[0, 0, 0], [9, 8, 7], [1, 1, 1]], np.uint8)
    save(tmp_path / "gt", x=colours[[[0, 1, 1, 0]]])
    figures = score(capsys, *options, "--class-ids")
    assert figures["iou"] == {"no": 1 / 2, "yes": 2 / 3}
    code, line = failure(capsys, *options)
    assert code == DATA_CHECK_FAILED
    assert "x.png: contains one id per pixel, but the truth contains colours; " in line
    assert line.endswith("add --class-ids")
    save(tmp_path / "pred", x=colours[[[0, 1, 2, 0]]])
    figures = score(capsys, *options)
    assert figures["iou"] == {"no": 1.0, "yes": 1 / 2}


def test_known_map_and_cityscapes_names(tmp_path, capsys):
    prediction = save(tmp_path / "pred", bonn_000001_000019_leftImg8bit=[[0, 1, 10]])
    truth = save(tmp_path / "gt", bonn_000001_000019_gtFine_labelIds=[[0, 1, 11]])
    figures = score(capsys, prediction, truth, "--label-map", "camvid")
    assert figures["pixel_accuracy"] == 1.0
    assert len(figures["iou"]) == 11
    assert {"Sky", "Bicyclist"} <= set(figures["iou"])
    save(
        tmp_path / "gt",
        bonn_000001_000019_gtFine_color=np.zeros((1, 3, 3)),
        bonn_000001_000019_gtFine_instanceIds=[[0, 1, 11]],
        bonn_000001_000019_gtFine_instanceTrainIds=[[0, 1, 11]],
    )
    assert score(capsys, prediction, truth, "--label-map", "camvid") == figures


def test_label_ids_and_training_ids_of_cityscapes(tmp_path, capsys):
    """Of both in a folder those are read that the map lists, as fine or coarse labels."""
    prediction = save(tmp_path / "pred", bonn_000001_000019_leftImg8bit=[[7, 8, 33, 7]])
    numbers = save(tmp_path / "numbers", bonn_000001_000019_leftImg8bit=[[0, 1, 18, 0]])
    for kind in ("gtFine", "gtCoarse"):
        name = f"bonn_000001_000019_{kind}"
        files = {
            f"{name}_labelIds": [[7, 8, 33, 0]],
            f"{name}_labelTrainIds": [[0, 1, 18, 255]],
            f"{name}_color": np.zeros((1, 4, 3)),
            f"{name}_instanceIds": [[7, 8, 33, 0]],
        }
        truth = save(tmp_path / kind, **files)  # fmt: skip
        for given in (
            (prediction, truth, "--label-map", "cityscapes"),
            (numbers, truth, "--label-map", "cityscapes", "--class-ids"),
            (numbers, truth, "--label-map", "cityscapes:train_ids"),
            (numbers, truth, "--num-classes", 19),
        ):
            figures = score(capsys, *given)
            assert (figures["pixel_accuracy"], figures["images"]) == (1.0, 1)
    code, line = failure(capsys, prediction, truth, "--label-map", "cityscapes:x")
    assert (code, "cityscapes has no ids 'x'" in line) == (FAILED, True)
    (truth / f"{name}_labelIds.png").unlink()
    code, line = failure(capsys, prediction, truth, "--label-map", "cityscapes")
    assert code == DATA_CHECK_FAILED
    assert "_labelTrainIds.png: contains training ids, but the map lists label ids; " in line


def test_a_truncated_file_is_named_and_counted(folders, capsys):
    whole = (folders[0] / "b.png").read_bytes()
    (folders[0] / "b.png").write_bytes(whole[: len(whole) // 2])
    assert main(["score", *map(str, folders), "--num-classes", "2", "--json"]) == FAILED
    streams = capsys.readouterr()
    figures = json.loads(streams.out)
    assert figures["images"] == 1
    assert len(figures["failed"]) == 1
    assert "b.png" in figures["failed"][0]
    assert "1 of 2 images failed" in streams.err


def test_ids_that_are_given_are_ignored_whatever_the_map_says(tmp_path, capsys):
    prediction = save(tmp_path / "pred", x=[[7, 7, 7, 0, 255]])
    truth = save(tmp_path / "gt", x=[[7, 8, 8, 0, 255]])
    mapping = tmp_path / "map.yaml"
    mapping.write_text("classes: [road, walk, no]\nlabel_map: {0: no, 7: road, 8: walk, 255: no}\n")
    options = (prediction, truth, "--label-map", mapping)
    assert score(capsys, *options)["pixel_accuracy"] == 3 / 5  # 255 is a class of this map
    assert score(capsys, *options, "--ignore-index", 8)["pixel_accuracy"] == 1.0
    figures = score(capsys, *options, "--ignore-index", 0, 255)
    assert figures["iou"] == {"road": 1 / 3, "walk": 0.0, "no": None}
    mapping.write_text("classes: {no: [0, 0, 0], yes: [9, 8, 7]}\ncolour_map: classes\n")
    code, line = failure(capsys, *options, "--ignore-index", 8)
    assert code == USAGE
    assert "--ignore-index 8: the truth of" in line


def test_an_ignored_id_that_no_file_can_hold(folders, capsys):
    """As torch's ignore_index=-100."""
    code, line = failure(capsys, *folders, "--num-classes", 2, "--ignore-index=-100")
    assert (code, line) == (USAGE, "setr: --ignore-index -100: ids in files are 0 to 65535")


def test_sizes_must_agree(folders, capsys):
    save(folders[0], b=[[1, 1]])
    code, line = failure(capsys, *folders, "--num-classes", 2)
    assert code == DATA_CHECK_FAILED
    assert "b.png" in line
    assert "2x1 but its truth 3x1" in line


def test_unlisted_truth_is_an_error(folders, capsys):
    code, line = failure(capsys, *folders, "--num-classes", 2, "--ignore-index", 9)
    assert code == DATA_CHECK_FAILED
    assert "b.png" in line
    assert "255 (1 px)" in line


def test_missing_predictions_are_named(folders, capsys):
    (folders[0] / "a.png").unlink()
    code, line = failure(capsys, *folders, "--num-classes", 2)
    assert code == DATA_CHECK_FAILED
    assert "no prediction for 1 of 2 images" in line
    assert line.endswith(": a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--num-classes or --label-map"),
        (["--num-classes", 2, "--label-map", "nowhere.yaml"], "nowhere.yaml"),
        (["--label-map", "camvid", "--num-classes", 12], "has 11 classes"),
        (["--label-map", "camvid", "--reduce-zero-label"], "give one"),
        (["--num-classes", 0], "give at least 1"),
    ],
)
def test_contradicting_options(folders, capsys, options, message):
    code, line = failure(capsys, *folders, *options)
    assert code in (USAGE, FAILED)
    assert message in line


def test_empty_folders(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, line = failure(capsys, tmp_path / "empty", tmp_path / "empty", "--num-classes", 2)
    assert (code, "no label images" in line) == (DATA_CHECK_FAILED, True)
    code, line = failure(capsys, tmp_path / "none", tmp_path / "empty", "--num-classes", 2)
    assert (code, "no such folder" in line) == (USAGE, True)
