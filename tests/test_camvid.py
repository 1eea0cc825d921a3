"""The CamVid benchmark on a few drawn scenes: every kind of run, nothing twice, and its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
import yaml

import setr
from setr.commands.parsing import parse
from setr.commands.train import Arguments
from setr.config import Config
from setr.recipes import recipe
from setr.training.build import build_model

BENCH = Path(__file__).resolve().parents[1] / "benchmarks" / "camvid"
SOURCE = Path(setr.__file__).parents[1]


def bench(*arguments: object, code: int = 0) -> str:
    """Run the benchmark as a user would; what it printed."""
    done = subprocess.run(
        [sys.executable, BENCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid") / "runs"
    bench("--smoke", "--runs", folder, "--seeds", 1, "--data", folder / "none", "--jobs", 2)
    return folder


def test_every_row_is_recorded_once_with_its_source(runs):
    records = json.loads((runs / "camvid.json").read_text())["runs"]
    assert set(records) == {"naive-s0", "plain-s0", "with_stride8-s0", "mla_short-s0",
                            "taps_9_10_11_12-s0"}  # fmt: skip
    for record in records.values():
        assert 0 <= record["test"]["single_scale"]["miou"] <= 1
        assert record["seconds_per_step"] > 0
        assert record["peak_mb"] > 50
        assert record["hardware"]
        assert record["command"].startswith("setr train camvid_setr_")
    assert "multi_scale" in records["naive-s0"]["test"]
    assert "multi_scale" not in records["plain-s0"]["test"]


def test_a_second_call_repeats_nothing_and_an_interrupted_run_goes_on(runs):
    path = runs / "camvid.json"
    values = json.loads(path.read_text())
    lost = values["runs"].pop("naive-s0")  # as if stopped after the training's last state
    path.write_text(json.dumps(values))
    (runs / "naive-s0" / "metrics.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in runs.glob("*-s0/test-single_scale/metrics.json")}
    printed = bench("--smoke", "--runs", runs, "--seeds", 1, "--data", runs / "none")
    assert printed.count("s/step") == 2 + printed.count("| s/step |")  # this run and its trial
    assert "continuing after step 2" in (runs / "naive-s0" / "train.log").read_text()
    assert {p: p.stat().st_mtime_ns for p in before} == before  # tested once
    again = json.loads(path.read_text())["runs"]
    assert again["naive-s0"]["test"] == lost["test"]
    table = [line for line in printed.splitlines() if line.startswith("| SETR-Naive")]
    assert f"{100 * lost['test']['single_scale']['miou']:.2f}" in table[0]
    page = (runs / "report" / "index.html").read_text()
    assert "Worst test images" in page
    assert "boundary IoU" in page
    assert "mIoU %, multi scale" in page


def test_the_chart_has_a_dot_for_every_row(runs):
    picture = runs / "chart.svg"
    bench("chart", "--results", runs / "camvid.json", "--out", picture)
    text = picture.read_text()
    assert text.count("<circle") == 5 + 3  # the legend's
    assert ElementTree.fromstring(text).tag.endswith("svg")


def test_results_from_elsewhere_are_taken_over_but_never_changed(runs, tmp_path):
    ours = tmp_path / "ours.json"
    assert "naive-s0" in bench("merge", runs / "camvid.json", "--results", ours)
    values = json.loads(ours.read_text())
    values["runs"]["naive-s0"]["test"]["single_scale"]["miou"] = 0.9
    ours.write_text(json.dumps(values))
    refused = bench("merge", runs / "camvid.json", "--results", ours, code=1)
    assert "has other figures for naive-s0" in refused


def test_several_tables_are_one_queue(tmp_path):
    told = bench("main+steps", "--data", tmp_path, "--runs", tmp_path / "r", "--only", "plain",
                 "--weights", tmp_path / "w", "--results", tmp_path / "r.json", code=1)  # fmt: skip
    assert "plain-s0" in told
    assert "one or more of main, recipes, steps" in bench("main+step", code=2)


@pytest.mark.parametrize(
    ("change", "shared"),
    [({}, False), ({"hardware": "another card"}, True), ({"settings": {"train.steps": 9}}, True)],
)
def test_the_cost_of_a_trial_is_told_of_the_same_run_on_the_same_card(tmp_path, change, shared):
    values = json.loads((BENCH.parent / "results" / "camvid.json").read_text())
    run, path = values["runs"]["mla-s0"], tmp_path / "r.json"
    trial = {key: run[key] for key in ("hardware", "settings", "peak_mb")}
    values["trials"]["mla"] = {**trial, "seconds_per_step": 0.0123, **change}
    path.write_text(json.dumps(values))
    (line,) = (x for x in bench("tables", "--results", path).splitlines() if "| SETR-MLA |" in x)
    assert ("(shared)" in line, "0.012" in line) == (shared, not shared)


def test_pretrained_rows_ask_for_their_weights(tmp_path):
    told = bench("main", "--data", tmp_path, "--runs", tmp_path / "r", "--results",
                 tmp_path / "r.json", code=1)  # fmt: skip
    assert "naive: starts from pretrained weights; give --weights FILE" in told


def test_every_row_is_a_valid_run_of_its_recipe(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    from manifest import TABLES
    from runner import plain

    names = [row.name for rows in TABLES.values() for row in rows]
    assert len(names) == len(set(names))
    for row in (row for rows in TABLES.values() for row in rows):
        values = yaml.safe_load(recipe(row.recipe).to_yaml())
        for name, value in plain(row.settings).items():
            section, key = name.split(".")
            values[section][key] = value
        config = Config.from_yaml(yaml.safe_dump(values), source=row.name)
        assert config.data.val_split == "val"  # nothing is chosen on test
        assert "test" not in config.data.train_split
        assert row.against is None or row.against in names
        if {"model.taps", "model.patch_stride"} & set(row.settings):
            with torch.device("meta"):
                build_model(config, 11)


def test_settings_reach_the_command_line(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    from runner import as_arguments

    settings = {
        "model.freeze": -1,
        "model.aux": False,
        "model.taps": (9, 12),
        "data.crop_size": (252, 336),
        "data.short_side": None,
        "data.photometric": True,
    }
    given = parse(Arguments, as_arguments(settings), "train").config
    assert (given.model.freeze, given.model.aux, given.model.taps) == (-1, False, (9, 12))
    assert (given.data.crop_size, given.data.short_side) == ((252, 336), None)
    assert given.data.photometric


def test_the_final_model_takes_what_helped_on_val_one_of_each_kind(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    from manifest import combined

    gains = {"decay": 1.0, "ema": 0.2, "input546": 2.0, "stride8": 3.0, "drop": -1.0, "rare": 0.6}
    settings = combined(gains, noise=0.4)
    assert settings["optim.layer_decay"] == 0.75
    assert settings["model.patch_stride"] == 8
    assert settings["data.short_side"] == 360
    assert settings["train.ema"] == 0.0
    assert settings["data.rare_class_crops"] == 0.5
    assert combined(gains, noise=0.7)["optim.layer_decay"] == 0.75
    assert "data.rare_class_crops" not in combined(gains, noise=0.7)


def write_log(folder: Path, sessions: list[tuple[int, int, float]], peaks: list[float]) -> None:
    """The logs of sessions of `setr train`: (first step - 1, last step, seconds of a step).

    The first step of every session takes ten seconds more than the others.
    """
    lines = []
    told = [f"continuing after step {start}" for start, _, _ in sessions if start]
    for (start, last, pace), peak in zip(sessions, peaks, strict=True):
        lines = [line for line in lines if line["step"] <= start]
        for done in range(1, last - start + 1):
            average = (10 + done * pace) / done
            line = {"step": start + done, "seconds_per_step": average, "peak_memory_gb": peak}
            lines += [line, {"step": start + done, "val": {"miou": 0.5}}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "train.log").write_text("\n".join(["train 1/9", *told, ""]))


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([(0, 8, 2.0)], 2.0),
        ([(0, 4, 2.0), (4, 8, 3.0)], 2.5),
        ([(0, 6, 2.0), (4, 8, 3.0)], 2.5),  # steps 5 and 6 were lost
        ([(0, 4, 2.0), (4, 6, 9.0), (4, 8, 3.0)], 2.5),
        ([(0, 6, 2.0), (4, 6, 9.0), (2, 8, 3.0)], 17 / 6),  # the state of step 4 was broken
        ([(0, 8, 2.0), (8, 8, 2.0)], 2.0),  # only the figures were missing
        ([(0, 1, 2.0)], 12.0),
    ],
)
def test_seconds_per_step_are_of_all_sessions(monkeypatch, tmp_path, sessions, expected):
    monkeypatch.syspath_prepend(BENCH)
    from runlog import seconds_per_step

    write_log(tmp_path, sessions, [1.0] * len(sessions))
    assert seconds_per_step(tmp_path) == pytest.approx(expected, abs=1e-5)


def test_the_peak_is_that_of_the_largest_session(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    from runner import Bench
    from store import Store
    from worker import Clock, Cost

    write_log(tmp_path, [(0, 4, 1.0), (4, 8, 1.0)], [2.0, 1.0])
    last = Cost(0, 1.0, 1000.0)  # of the session that finished the run
    monkeypatch.setattr(Bench, "_setr", lambda *_: last)
    monkeypatch.setattr(Bench, "_options", lambda *_: [])
    store = Store(tmp_path / "camvid.json")
    bench = Bench(store, tmp_path, tmp_path, None, None, None, 1, 1, Clock(None))
    assert bench._train(SimpleNamespace(recipe="demo"), 0, tmp_path) == pytest.approx(2e9 / 2**20)
    assert json.loads((tmp_path / "peak.json").read_text())["mb"] == pytest.approx(2e9 / 2**20)
