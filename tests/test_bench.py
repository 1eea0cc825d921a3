"""`setr bench`: rows in processes of their own, agreement, advice."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest

from setr.bench import ROWS, Row, advice, bench, run_process
from setr.cli import main
from setr.commands.bench import table
from setr.errors import USAGE, SetrError
from setr.exporting import bench_row
from setr.loading import load
from tests.conftest import save_scene_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_scene_model(tmp_path_factory.mktemp("model"), "naive", crop_size=(32, 48))


def test_rows_are_timed_and_compared(model_dir):
    pytest.importorskip("onnxruntime")
    report = bench(
        str(model_dir),
        data="scenes:20",
        count=2,
        batches=(1, 2),
        seconds=0.01,
        rows=(Row("onnxruntime", "fp32"),),
    )
    assert report["size"] == [32, 48]
    first, second = report["rows"]
    assert (first["runtime"], first["precision"]) == ROWS[0]
    assert first["agreement"] == 1.0
    assert second["agreement"] > 0.999
    assert second["miou"] == pytest.approx(first["miou"], abs=1e-3)
    for row in (first, second):
        assert set(row["batches"]) == {"1", "2"}
        for timed in row["batches"].values():
            assert 0 < timed["p50_ms"] <= timed["p95_ms"]
            assert timed["peak_mb"] > 50
    text = table(report)
    assert "onnxruntime fp32" in text
    assert text.endswith(report["advice"])
    json.dumps(report)


def test_the_peak_is_that_of_the_row_s_own_device(model_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(bench_row, "peak_bytes", lambda device: asked.append(device) or 7_000_000)
    predictor = load(model_dir, device="cpu")
    assert bench_row.time_batch(predictor, (1, 3, 32, 48), 0.0)["peak_mb"] == 7
    assert asked == [predictor.device]


def test_slow_runs_end_after_a_while(model_dir, monkeypatch):
    ran, clock = [], itertools.count(step=20.0)  # seconds, in each run
    predict = bench_row.predict_mask
    monkeypatch.setattr(
        bench_row, "predict_mask", lambda *a, **o: ran.append(1) or predict(*a, **o)
    )
    monkeypatch.setattr(bench_row, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    timed = bench_row.time_batch(load(model_dir, device="cpu"), (2, 3, 32, 48), 5.0)
    assert timed["images_per_second"] == 2 / 20
    assert len(ran) == 3


def row(runtime: str, precision: str, speed: float, agreement: float, miou: float | None) -> dict:
    timed = {"images_per_second": speed, "p50_ms": 1.0, "p95_ms": 1.0, "peak_mb": 1.0}
    return {"runtime": runtime, "precision": precision, "agreement": agreement, "miou": miou,
            "batches": {"1": timed}}  # fmt: skip


def test_scenes_for_a_tiny_size_are_larger(model_dir, tmp_path):
    masks = str(tmp_path / "masks.npz")
    job = {"source": str(model_dir), "runtime": "eager", "precision": "fp32", "device": "cpu",
           "size": (1, 3), "batches": (1,), "seconds": 0.001, "data": None, "masks": masks,
           "reference": masks}  # fmt: skip
    assert bench_row.run_row(job)["agreement"] == 1.0


def test_the_advice_is_the_fastest_row_that_keeps_the_masks():
    rows = [row("eager", "fp32", 1, 1.0, 0.70), row("openvino", "bf16", 3, 0.98, 0.698),
            row("openvino", "int8", 6, 0.95, 0.68)]  # fmt: skip
    text = advice("runs/x", [*rows, {"runtime": "compile", "precision": "fp32", "error": "no C++"}])
    assert "openvino bf16, 3.00 images/s, 3.0 times eager fp32" in text
    assert "setr export runs/x --format openvino -o model.xml --precision bf16" in text
    assert "--calibration DATA (DATA: a labelled data set" in text
    assert "setr export 'my runs/x' --format" in advice("my runs/x", rows)
    assert advice("runs/x", rows, "my photos").endswith("--calibration 'my photos'")
    assert advice("runs/x", rows, "a", "test").endswith("--calibration a --split test")
    for r in rows:
        r["miou"] = None
    assert "nothing to change" in advice("runs/x", rows)


def test_a_row_that_fails_says_why(model_dir):
    job = {"source": str(model_dir / "none.onnx"), "runtime": "onnxruntime", "device": "cpu"}
    assert "no such file" in run_process(job)["error"]


def test_a_row_without_a_file_is_not_called_timed(model_dir, monkeypatch, capsys):
    int8 = Row("openvino", "int8")
    monkeypatch.setattr("setr.bench._export", lambda *_: {int8: "needs --data"})
    monkeypatch.setattr("setr.bench.run_process", lambda job: row("eager", "fp32", 1, 1.0, None))
    report = bench(str(model_dir), rows=(int8,))
    assert report["rows"][1]["error"] == "needs --data"
    told = capsys.readouterr().err
    assert told == "setr: timed: eager fp32\nsetr: not timed: openvino int8\n"


def test_what_cannot_be_timed(model_dir, capsys, tmp_path):
    assert main(["bench", str(model_dir), "--skip", "eager"]) == USAGE
    assert main(["bench", str(model_dir), "--batches", "0"]) == USAGE
    assert main(["bench", str(tmp_path / "none")]) == USAGE
    assert capsys.readouterr().err.count("\n") == 3
    with pytest.raises(SetrError, match="nowhere: no such"):
        bench(str(model_dir), data="nowhere")
