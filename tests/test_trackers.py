"""Logs of a run: every tracker gets the same figures, a resumed log has every step once."""

from __future__ import annotations

import csv
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import setr.trackers as trackers
from setr.config import TrainConfig
from setr.engine import train
from setr.errors import FAILED, SetrError
from setr.images import read_image
from setr.pages.loss_curves import loss_chart, loss_curves
from setr.processes.progress import Progress
from setr.trackers import CsvTable, JsonLines, Pictures, Tracker, open_trackers, scalars
from tests.conftest import disk_for, tiny_config
from tests.runs import assert_same_weights, killed_and_resumed

LINES = [
    {"step": 2, "loss": 1.5, "lr": 0.1},
    {"step": 4, "loss": 1.25, "lr": 0.05},
    {"step": 4, "val": {"miou": 0.5, "iou": {"road": 0.5, "sky": None}, "absent": "skip"}},
    {"step": 6, "loss": 1.0, "lr": 0.01},
]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_come_by_path():
    assert scalars(LINES[2]) == {"val/miou": 0.5, "val/iou/road": 0.5}
    assert scalars({"step": 3, "good": True, "loss": 2}) == {"loss": 2}
    assert scalars({"step": 3, "val": {"iou": {"step": 0.4}}}) == {"val/iou/step": 0.4}


def test_jsonl_and_csv_hold_the_same(tmp_path):
    table, lines = CsvTable(tmp_path, 0), JsonLines(tmp_path, 0)
    for line in LINES:
        table.line(line)
        lines.line(line)
    assert [json.loads(t) for t in (tmp_path / "log.jsonl").read_text().splitlines()] == LINES
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["2", "4", "4", "6"]
    assert [row["loss"] for row in found] == ["1.5", "1.25", "", "1.0"]
    assert [row["val/miou"] for row in found] == ["", "", "0.5", ""]


def test_a_loss_that_is_no_number_is_null_and_no_point_of_the_curve(tmp_path, capsys):
    """fp16 leaves such a step out, and the run goes on."""
    table, lines = CsvTable(tmp_path, 0), JsonLines(tmp_path, 0)
    for step, loss in enumerate((1.5, float("nan"), float("inf"), 1.25), 1):
        for tracker in (table, lines):
            tracker.line({"step": step, "loss": loss, "lr": 0.1})
    log = tmp_path / "log.jsonl"
    found = [json.loads(t, parse_constant=pytest.fail) for t in log.read_text().splitlines()]
    assert [line["loss"] for line in found] == [1.5, None, None, 1.25]
    assert [row["loss"] for row in rows(tmp_path)] == ["1.5", "", "", "1.25"]
    assert loss_curves(log) == loss_chart({"training": [(1, 1.5), (4, 1.25)]})
    progress = Progress("train", 3)
    for step, loss in enumerate((1.5, float("nan"), 1.5), 1):
        progress.update(step, images=1, loss=loss)
    assert "loss 1.500" in capsys.readouterr().err


def test_time_until_an_item_is_there_is_waiting_for_data(monkeypatch, capsys):
    now = [0.0]

    def slow():
        for item in "ab":
            now[0] += 3
            yield item

    monkeypatch.setattr("setr.processes.progress.time.monotonic", lambda: now[0])
    progress = Progress("eval", 2)
    for done, _ in enumerate(progress.fed_by(slow()), 1):
        now[0] += 1
        progress.update(done, images=1)
    assert progress.rates()["data_wait_percent"] == 75
    assert "data 75%" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [CsvTable, JsonLines])
def test_resuming_drops_what_came_after_and_torn_lines(tmp_path, kind):
    tracker = kind(tmp_path, 0)
    for line in LINES:
        tracker.line(line)
    (path,) = tmp_path.glob("log.*")
    path.open("a").write('{"step": 8, "lo' if kind is JsonLines else "8,0.")
    again = kind(tmp_path, 4)
    again.line({"step": 5, "loss": 0.5, "lr": 0.0, "new": 1})
    if kind is CsvTable:
        steps = [row["step"] for row in rows(tmp_path)]
        assert [row["new"] for row in rows(tmp_path)] == ["", "", "", "1"]
    else:
        steps = [str(json.loads(t)["step"]) for t in path.read_text().splitlines()]
    assert steps == ["2", "4", "4", "5"]
    kind(tmp_path, 0)
    assert not path.exists()


@pytest.mark.parametrize("kind", [CsvTable, JsonLines])
def test_a_line_that_a_full_disk_takes_half_of_is_left_out(tmp_path, kind):
    tracker = kind(tmp_path, 0)
    tracker.line(LINES[0])
    (path,) = tmp_path.glob("log.*")
    with disk_for(path.stat().st_size + 5), pytest.raises(OSError, match="too large"):
        tracker.line(LINES[1])
    for line in LINES[2:]:
        tracker.line(line)
    if kind is CsvTable:
        found = [(row["step"], row["loss"], row["val/miou"]) for row in rows(tmp_path)]
        assert found == [("2", "1.5", ""), ("4", "", "0.5"), ("6", "1.0", "")]
    else:
        found = [json.loads(text) for text in path.read_text().splitlines()]
        assert found == [LINES[0], *LINES[2:]]


def test_columns_that_a_full_disk_refused_come_with_the_next_line(tmp_path):
    tracker = CsvTable(tmp_path, 0)
    with disk_for(3), pytest.raises(OSError, match="too large"):
        tracker.line(LINES[0])
    assert list(tmp_path.iterdir()) == []
    for line in LINES[1:3]:
        tracker.line(line)
    with disk_for(10), pytest.raises(OSError, match="too large"):
        tracker.line({"step": 6, "loss": 1.0, "lr": 0.0, "new": 1})
    tracker.line({"step": 8, "loss": 1.0, "lr": 0.0, "new": 2})
    tracker.line({"step": 8, "val": {"miou": 0.75, "accuracy": 0.5}})
    found = [(row["step"], row["loss"], row["new"], row["val/accuracy"]) for row in rows(tmp_path)]
    assert found == [
        ("4", "1.25", "", ""), ("4", "", "", ""), ("8", "1.0", "2", ""), ("8", "", "", "0.5"),
    ]  # fmt: skip


def test_rows_of_an_older_log_that_run_together_are_left_out(tmp_path):
    table = CsvTable(tmp_path, 0)
    table.line(LINES[0])
    with (tmp_path / "log.csv").open("a") as file:
        file.write("4,1.256,1.0,0.01\r\n")  # half of step 4, then step 6
    CsvTable(tmp_path, 8).line({"step": 10, "loss": 0.5, "lr": 0.0, "new": 1})
    assert [row["step"] for row in rows(tmp_path)] == ["2", "10"]


@pytest.mark.parametrize("kind", [CsvTable, JsonLines])
def test_a_test_that_will_be_repeated_is_dropped(tmp_path, kind):
    """It was logged, and then the run was killed before its state was saved."""
    tracker = kind(tmp_path, 0)
    for line in (*LINES, {"step": 6, "val": {"miou": 0.25}}):
        tracker.line(line)
    again = kind(tmp_path, 6, 4)
    again.line({"step": 6, "val": {"miou": 0.25}})
    (path,) = tmp_path.glob("log.*")
    if kind is CsvTable:
        found = [(row["step"], row["val/miou"]) for row in rows(tmp_path)]
        assert found == [("2", ""), ("4", ""), ("4", "0.5"), ("6", ""), ("6", "0.25")]
    else:
        found = [json.loads(text) for text in path.read_text().splitlines()]
        assert [(line["step"], "val" in line) for line in found] == [
            (2, False), (4, False), (4, True), (6, False), (6, True),
        ]  # fmt: skip


def test_pictures_are_kept_by_step(tmp_path):
    tracker = Pictures(tmp_path, 0)
    for step in (2, 4):
        tracker.picture(step, np.full((8, 8, 3), step, np.uint8))
    Pictures(tmp_path, 2)
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step-000002.png"]


def test_a_run_logs_losses_rates_and_pictures(tmp_path):
    config = tiny_config(tmp_path / "run", steps=2, eval_every=1, samples=2)
    train(config)
    out = Path(config.out)
    figures = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    expected = {"main", "aux_1", "lr", "gradient_norm", "images_per_second", "data_wait_percent",
                "peak_memory_gb", "mfu_percent", "loss"}  # fmt: skip
    assert expected <= figures.keys()
    assert figures["gradient_norm"] > 0
    assert 0 < figures["mfu_percent"] < 100
    assert 0.1 < figures["peak_memory_gb"] < 30
    names = {"step-000000.png", "step-000001.png", "step-000002.png"}
    assert {p.name for p in (out / "samples").iterdir()} == names
    crops = read_image(out / "samples" / "step-000000.png")
    assert crops.shape[1] == 2 * (320 + 8)
    assert crops.shape[0] > 2 * 320
    picture = read_image(out / "samples" / "step-000002.png")
    assert picture.shape[1] == 3 * (320 + 8)
    assert picture.shape[0] > 2 * 320


def test_resume_with_trackers_and_profiler_is_bit_for_bit(tmp_path, monkeypatch, capsys):
    """What is only watched must not change a weight; every tracker goes on where it was."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_config(tmp_path / "plain", steps=3))
    watched = tiny_config(tmp_path / "watched", steps=3, save_every=2, log="tensorboard",
                          profile=1, eval_every=2)  # fmt: skip
    killed_and_resumed(watched, monkeypatch, at=2)
    assert_same_weights(tmp_path / "plain", watched)
    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.step for event in events.Images("samples")] == [0, 2, 3]
    trace = json.loads((tmp_path / "watched" / "trace.json").read_text())
    assert any(e.get("name") == "module: encoder.vit.blocks.0" for e in trace["traceEvents"])
    assert "encoder.vit.blocks.*" in capsys.readouterr().err


def test_a_tracker_that_fails_costs_its_line_and_not_the_run(config, capsys):
    class Broken(Tracker):
        def line(self, line):
            raise OSError(28, "No space left on device")

    assert train(config, trackers=[Broken])["single_scale"]["miou"] is not None
    assert "log line not written (No space left on device)" in capsys.readouterr().err


def test_a_missing_extra_is_named_before_anything_starts(config, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    watched = config.replace({"train.log": "wandb"})
    with pytest.raises(SetrError, match=r'pip install "setr\[log\]"') as caught:
        train(watched)
    assert caught.value.code == FAILED
    assert not Path(config.out).exists()


def test_names_of_trackers_are_checked():
    assert TrainConfig(log="tensorboard, wandb").trackers == ("tensorboard", "wandb")
    with pytest.raises(SetrError, match="give tensorboard, wandb or tensorboard,wandb"):
        TrainConfig(log="mlflow")


def test_wandb_offline(tmp_path, monkeypatch):
    """Runs without an account or network; a continued run keeps its id, so a sync joins them."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "run" / "wandb"
    folder.parent.mkdir()
    for step in (0, 4):
        *_, tracker = open_trackers(tmp_path / "run", ["wandb"], step)
        for line in LINES:
            tracker.line(line)
        tracker.picture(6, np.zeros((8, 8, 3), np.uint8))
        tracker.close()
    wandb.teardown()  # its process writes on after `finish`
    run_id = (folder / "run_id").read_text()
    logs = list(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert 1 <= len(logs) <= 2  # two in the same second share a folder
    assert all(b"val/miou" in log.read_bytes() for log in logs)
    assert list(folder.glob("offline-run-*/files/media/images/*.png"))


class Watch(Tracker):
    """Remembers what it is given; ends the run where `until` says."""

    until = ("", 0)

    def __init__(self, out: Path, step: int) -> None:
        super().__init__(out, step)
        self.seen: list[tuple[str, int]] = []
        self.began, self.closed = step, False
        MADE.append(self)

    def line(self, line):
        kind = "val" if "val" in line else "loss"
        self.seen.append((kind, line["step"]))
        if self.until == self.seen[-1]:
            self.ended = "seen enough"

    def close(self):
        self.closed = True


MADE: list[Watch] = []


@pytest.mark.parametrize(("until", "steps"), [(("loss", 2), 2), (("val", 3), 3), (("", 0), 6)])
def test_a_tracker_of_ones_own_sees_all_and_may_end_the_run(
    tmp_path, capsys, monkeypatch, until, steps
):
    monkeypatch.setattr(Watch, "until", until)
    config = tiny_config(tmp_path / "run", steps=6)
    config = config.replace({"train.eval_every": 3, "train.log_every": 2})
    assert train(config, trackers=[Watch])["steps"] == steps
    watch = MADE.pop()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    assert watch.seen == [("val" if "val" in v else "loss", v["step"]) for v in values]
    assert watch.closed
    told = f"ended after step {steps} of 6: seen enough" in capsys.readouterr().err
    assert told == (steps < 6)
    assert (tmp_path / "run" / "last" / f"step-{steps:08d}").is_dir()
    if steps < 6:  # the run is whole and can go on
        assert train(config, resume=True, trackers=[JsonLines])["steps"] == 6


def test_an_exception_of_a_tracker_ends_the_run(tmp_path):
    class PrunedError(Exception):
        pass

    class Prune(Tracker):
        def line(self, line):
            raise PrunedError

    with pytest.raises(PrunedError):
        train(tiny_config(tmp_path / "run", steps=60), trackers=[Prune])


def test_a_table_begun_anew_has_its_header(tmp_path):
    for _ in range(2):
        CsvTable(tmp_path, 0).line({"step": 50, "loss": 0.5})
    assert rows(tmp_path) == [{"step": "50", "loss": "0.5"}]


def test_no_errors_are_reported_to_weights_and_biases(tmp_path, monkeypatch):
    """Its process would send them over the network, also where the run itself is offline."""
    seen = []
    module = types.ModuleType("wandb")
    module.Image = module.Settings = lambda *_, **__: None
    module.init = lambda **_: seen.append(os.environ["WANDB_ERROR_REPORTING"])
    monkeypatch.setitem(sys.modules, "wandb", module)
    for given in ("", "true"):
        monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
        if given:
            monkeypatch.setenv("WANDB_ERROR_REPORTING", given)
        open_trackers(tmp_path, ["wandb"], 0)
    assert seen == ["false", "true"]
