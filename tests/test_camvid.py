"""The CamVid benchmark on a few drawn scenes: every kind of run, nothing twice, and its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import setr

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
    bench("--smoke", "--runs", folder, "--seeds", 1, "--data", folder / "none")
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
    before = {p: p.stat().st_mtime_ns for p in runs.glob("*-s0/eval-test/metrics.json")}
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


def test_results_from_elsewhere_are_taken_over_but_never_changed(runs, tmp_path):
    ours = tmp_path / "ours.json"
    assert "naive-s0" in bench("merge", runs / "camvid.json", "--results", ours)
    values = json.loads(ours.read_text())
    values["runs"]["naive-s0"]["test"]["single_scale"]["miou"] = 0.9
    ours.write_text(json.dumps(values))
    refused = bench("merge", runs / "camvid.json", "--results", ours, code=1)
    assert "has other figures for naive-s0" in refused


def test_pretrained_rows_ask_for_their_weights(tmp_path):
    told = bench("main", "--data", tmp_path, "--runs", tmp_path / "r", "--results",
                 tmp_path / "r.json", code=1)  # fmt: skip
    assert "naive: starts from pretrained weights; give --weights FILE" in told
