"""What the benchmarks compare: equal work on both sides, floors no row is under, whole shares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from setr.metrics import ConfusionMatrix

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_peak_memory_is_not_the_parents():
    child = (
        "import sys, types; sys.modules['torch'] = types.ModuleType('torch')\n"  # for its size
        f"sys.path.insert(0, {str(BENCHMARKS)!r}); from peers import peak_mb; print(peak_mb())"
    )
    parent = (
        "import subprocess, sys; held = b'x' * 300_000_000\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True
    )
    assert 1 < float(done.stdout) < 150


@pytest.fixture
def peer_metric(monkeypatch):
    """mmsegmentation, as far as its metric is asked for: it keeps what it is given."""
    given = []

    def intersect_and_union(prediction, truth, num_classes, ignore_index):
        assert (num_classes, ignore_index) == (150, 255)
        given.append((prediction, truth))

    parts = {
        "mmengine.config": {"Config": None},
        "mmseg.evaluation.metrics": {
            "IoUMetric": SimpleNamespace(intersect_and_union=intersect_and_union)
        },
        "mmseg.registry": {"MODELS": None},
    }
    for name in ("mmengine", "mmseg", "mmseg.evaluation"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, values in parts.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return given


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_both_metrics_are_timed_on_the_same_masks_as_often(monkeypatch, peer_metric, dtype):
    import evaluation

    threads = torch.get_num_threads()
    case = f"metric-{str(dtype).removeprefix('torch.')}"
    assert case in evaluation.CASES
    monkeypatch.setattr(evaluation, "load_mmseg", lambda: None)
    own = []
    monkeypatch.setattr(ConfusionMatrix, "update", lambda self, *masks: own.append(masks))
    sizes = evaluation.images(tiny=True)
    evaluation.ours(case, "fp32", sizes, 2)
    evaluation.peer(case, sizes, 2)
    torch.set_num_threads(threads)
    assert len(own) == len(peer_metric) > 2
    for ours, theirs in zip(own[0], peer_metric[0], strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert torch.equal(ours, theirs)
    prediction, truth = own[0]
    assert 0 < (prediction == truth).double().mean() < 1
    assert (prediction[:, 1:] == prediction[:, :-1]).double().mean() > 0.9  # blocks, no noise


def test_floors_are_of_the_rows_own_precision():
    from inference_tables import of_floor

    floors = {"fp32": 0.5, "bf16": 0.25}
    assert of_floor({"contender": "eager fp32", "seconds": 1.0}, floors) == "50%"
    assert of_floor({"contender": "openvino bf16", "seconds": 0.5}, floors) == "50%"
    assert of_floor({"contender": "openvino int8", "seconds": 0.1}, floors) == ""


def test_no_stored_row_is_under_its_floor():
    from inference_tables import markdown

    record = json.loads((BENCHMARKS / "results" / "inference.json").read_text())
    rows = [line.split("|") for line in markdown(record).splitlines() if line.count("|") == 8]
    shares = [cells[6].strip() for cells in rows if cells[6].strip().endswith("%")]
    assert len(shares) == sum(
        "int8" not in row["contender"] for model in record["models"] for row in model["rows"]
    )
    assert all(0 < int(share[:-1]) <= 100 for share in shares)


def test_rates_are_the_best_over_shapes_and_libraries(monkeypatch):
    import matrix_rates

    pace = iter([1.0, 8.0, 2.0, 1.0])  # of each precision, first and second shape
    both = [("fp32", None), ("bf16", None)]
    monkeypatch.setattr(matrix_rates, "PRODUCTS", ((16, 8, 8), (8, 8, 8)))
    monkeypatch.setattr(matrix_rates, "products", lambda a, b: iter(both))
    monkeypatch.setattr(matrix_rates, "fastest", lambda work: next(pace))
    rates = matrix_rates.matmul_rates({"tiny": False}, Path())
    assert rates == {"fp32": 2 * 16 * 8 * 8 / 1e9, "bf16": 2 * 8 * 8 * 8 / 1e9}


PRODUCTS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from matrix_rates import products

torch.manual_seed(0)
a, b = torch.randn(8, 16), torch.randn(4, 16)
for precision, multiply in products(a, b):
    product = multiply()
    value = product if isinstance(product, torch.Tensor) else torch.from_numpy(product[0].copy())
    tolerance = 1e-5 if precision == "fp32" else 0.1
    torch.testing.assert_close(value.float(), a @ b.T, atol=tolerance, rtol=0)
    print(precision)
"""


def test_all_products_are_the_same_one():
    """In a process of its own, as the benchmark has it: OpenVINO's threads stay out of this one."""
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS, BENCHMARKS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"fp32", "bf16"}


def test_a_share_is_of_the_bare_model_before_and_after(monkeypatch):
    import serve

    loads = iter([{"images_per_second": rate} for rate in (3.0, 2.0)])
    monkeypatch.setattr(serve, "measure_load", lambda *_: next(loads))
    running = []
    rates = iter([4.0, 2.0, 2.0])

    def own_rate() -> float:
        assert not running
        return next(rates)

    def start():
        running.append(1)
        return SimpleNamespace(stop=running.pop)

    found = serve.measure_shares(
        start, lambda server: None, own_rate, SimpleNamespace(rounds=2, seconds=1, ramp=1)
    )
    assert found["bare_images_per_second"] == [4.0, 2.0, 2.0]
    assert [r["share_of_bare"] for r in found["rounds"]] == [1.0, 1.0]
    assert found["share_of_bare"] == 1.0


def test_a_rate_is_counted_from_batch_to_batch():
    from clients import Clients

    clients = Clients(0, [], [], 0)
    clients.seconds = [(4.0 * i, 0.5) for i in range(1, 11) for _ in range(8)]  # 8 every 4 s
    for first, last in ((10.0, 22.0), (11.9, 24.1), (12.1, 23.9), (0.0, 41.0)):
        assert clients.figures(first, last)["images_per_second"] == 2.0
    assert clients.figures(1.0, 2.0)["images_per_second"] == 0.0


def test_scaling_refuses_a_batch_its_processes_cannot_share(monkeypatch, capsys):
    import scaling

    monkeypatch.setattr(scaling, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--batch", "4", "--processes", "1", "3"])
    with pytest.raises(SystemExit) as stop:
        scaling.main()
    assert stop.value.code == 2
    assert "--batch 4: strong scaling shares it among 3 processes" in capsys.readouterr().err


def test_the_checks_for_a_gpu_run_and_tell_what_failed(monkeypatch, tmp_path, capsys):
    import gpu_bench
    import gpu_check

    def wrong(bench):
        gpu_bench.require(False, "another number")

    monkeypatch.setitem(gpu_check.CHECKS, "step", wrong)
    words = f"--device cpu --tiny --only loss step layers --out {tmp_path / 'out.json'}"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *words.split()])
    assert gpu_check.main() == 1
    found = json.loads((tmp_path / "out.json").read_text())["checks"]
    assert found["loss"]["gradient_error"] < 0.02
    assert "another number" in found["step"]["failed"]
    assert found["layers"]["convolve, filter 4"] > 0


def test_a_plot_has_every_curve_with_its_name():
    from train_tables import line_chart

    plot = line_chart({"flat": [(1, 2), (2, 2)], "steep": [(1, 1), (2, 4)]}, "side", "MB")
    assert plot.count("<polyline") == 2
    assert (plot.count(">flat<"), plot.count(">steep<"), plot.count("xmlns")) == (1, 1, 1)
