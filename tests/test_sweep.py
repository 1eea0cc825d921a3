"""`setr sweep`: which settings are tried, how they are compared, what stops and continues."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import setr
from setr.cli import main
from setr.config import Config
from setr.errors import FAILED, INTERRUPTED, OK, USAGE, SetrError, UsageError
from setr.median_stop import MedianStop
from setr.pages.sweep_page import _note, _places, sweep_text
from setr.trials import Trial, _claimed, compared
from setr.variations import name_of, short, value_text, variations
from tests.conftest import tiny_config
from tests.runs import stop_after

BASE = Config()


@pytest.fixture
def base(tmp_path: Path) -> Config:
    return tiny_config(tmp_path / "sweep", steps=2)


def write_log(run: Path, tests: dict[int, float]) -> Path:
    """A log of evaluations: mIoU by step."""
    run.mkdir(parents=True)
    lines = [json.dumps({"step": step, "val": {"miou": miou}}) for step, miou in tests.items()]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    return run


def test_all_combinations_are_tried_in_order():
    found = variations(BASE, {"optim.lr": [1e-4, 1e-3], "model.aux": (True, False)})
    assert found == [
        {"optim.lr": 1e-4, "model.aux": True},
        {"optim.lr": 1e-4, "model.aux": False},
        {"optim.lr": 1e-3, "model.aux": True},
        {"optim.lr": 1e-3, "model.aux": False},
    ]


def test_points_are_spread_over_the_logarithm_and_over_whole_numbers():
    vary = {"optim.lr": "1e-5..1e-2", "model.freeze": "0..3", "data.flip": "0..0.5"}
    found = variations(BASE, vary, 64)
    exponents = [math.log10(point["optim.lr"]) for point in found]
    assert all(-5 <= e <= -2 for e in exponents)
    # every eighth of the range has eight points, or up to two more or fewer
    counts = [sum(-5 + 3 * i / 8 <= e < -5 + 3 * (i + 1) / 8 for e in exponents) for i in range(8)]
    assert all(abs(count - 8) <= 2 for count in counts)
    freezes = [point["model.freeze"] for point in found]
    assert sorted(set(freezes)) == [0, 1, 2, 3]
    assert all(isinstance(f, int) for f in freezes)
    assert all(abs(freezes.count(i) - 16) <= 4 for i in range(4))
    assert max(point["data.flip"] for point in found) > 0.45
    assert variations(BASE, vary, 8) == found[:8]  # more trials keep the first
    assert len({repr(point) for point in found}) == 64


def test_lists_are_sampled_without_repeats():
    vary = {"optim.lr": [1, 2, 3], "data.flip": [0, 0.5]}
    assert len({repr(v) for v in variations(BASE, vary, 6)}) == 6
    assert len(variations(BASE, vary, 4)) == 4


@pytest.mark.parametrize(
    ("vary", "number", "message"),
    [
        ({}, None, "nothing is varied"),
        ({"optim.lrr": [1]}, None, r"no such setting; did you mean optim\.lr"),
        ({"train.seed": [1, 2]}, None, "give seeds"),
        ({"data.workers": [0, 1]}, None, "does not change what a run learns"),
        ({"optim.lr": []}, None, "no values"),
        ({"optim.lr": 0.1}, None, "give a list of values"),
        ({"optim.lr": [1, 1.0]}, None, "1 is given twice"),
        ({"optim.lr": [1], "optim-lr": [2]}, None, "no such setting"),
        ({"optim.lr": [1], "--optim.lr": [2]}, None, "given twice"),
        ({"optim.lr": "1e-3..1e-5"}, 3, "LOW below HIGH"),
        ({"optim.lr": "1e-5..1e-3"}, None, "a range needs trials"),
        ({"model.freeze": "0.5..2"}, 2, "whole numbers"),
        ({"model.name": "1..2"}, 2, "not a setting with one number"),
        ({"optim.lr": [1, 2]}, 3, "only 2 combinations"),
        ({"optim.lr": [1, 2]}, 0, "at least 1"),
    ],
)
def test_what_cannot_be_varied_is_refused(vary, number, message):
    with pytest.raises(UsageError, match=message):
        variations(BASE, vary, number)


def test_names_tell_settings_and_are_distinct():
    assert (
        name_of({"optim.lr": 1e-4, "data.crop_size": (252, 336)}) == "lr=0.0001_crop-size=252x336"
    )
    assert list(short({"optim.name": "sgd", "model.name": "a"})) == ["optim.name", "model.name"]
    files = [name_of({"model.pretrained": path}) for path in ("a/b.pth", "a-b.pth", "x" * 300)]
    assert len(set(files)) == 3
    assert all("/" not in name and len(name) <= 100 for name in files)
    assert value_text(True) == "true"


def test_a_sweep_trains_ranks_continues_and_grows(base, monkeypatch):
    vary = {"optim.lr": [1e-3, 1e-2]}
    trials = setr.sweep(base, vary, seeds=2)
    assert [(t.variation["optim.lr"], t.seed) for t in trials] == [
        (1e-3, 0), (1e-2, 0), (1e-3, 1), (1e-2, 1),
    ]  # fmt: skip
    for trial in trials:
        assert trial.config.optim.lr == trial.variation["optim.lr"]
        saved = json.loads((trial.run / "metrics.json").read_text())
        assert trial.miou == saved["single_scale"]["miou"]
        assert not list((trial.run / "last").glob("*"))
        again = Config.load(trial.settings_file)
        assert again == trial.config
    groups = compared(trials)
    means = [sum(t.miou for t in g.trials) / 2 for g in groups]
    assert [g.mean for g in groups] == pytest.approx(means)
    assert means[0] >= means[1]
    a, b = (t.miou for t in groups[0].trials)
    assert groups[0].deviation == pytest.approx(abs(a - b) / math.sqrt(2))

    out = Path(base.out)
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [float(row["miou"]) for row in rows] == [t.miou for t in trials]
    values = json.loads((out / "results.json").read_text())
    assert values["complete"]
    assert values["variations"][0]["miou"] == groups[0].mean
    page = (out / "report.html").read_text()
    assert f"{100 * groups[0].mean:.2f} ± {100 * groups[0].deviation:.2f}" in page
    assert page.count("<circle") == 4

    # what is trained is not trained again
    trained = []
    monkeypatch.setattr("setr.trials.train", lambda c, **k: trained.append(c) or {})
    assert [t.miou for t in setr.sweep(base, vary, seeds=2)] == [t.miou for t in trials]
    assert not trained
    with pytest.raises(KeyError):  # the stand-in has no figures; it was called for the new value
        setr.sweep(base, {"optim.lr": [1e-3, 1e-2, 2e-2]}, seeds=2)
    assert [c.optim.lr for c in trained] == [2e-2]


def test_a_stopped_sweep_continues_and_equals_an_uninterrupted_one(base, monkeypatch):
    base = base.replace({"train.steps": 4})
    whole = setr.sweep(base.replace({"out": base.out + "-whole"}), {"data.flip": [0, 0.5]})
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(SetrError, match="continues the sweep") as caught:
            setr.sweep(base, {"data.flip": [0, 0.5]})
    assert caught.value.code == INTERRUPTED
    again = setr.sweep(base, {"data.flip": [0, 0.5]})
    for a, b in zip(whole, again, strict=True):
        files = [(t.run / "model.safetensors").read_bytes() for t in (a, b)]
        assert files[0] == files[1]


def test_other_settings_in_the_same_folder_are_refused(base):
    setr.sweep(base, {"data.flip": [0]})
    with pytest.raises(UsageError, match=r"flip=0_seed=0: was trained with train\.steps 2, not 3"):
        setr.sweep(base.replace({"train.steps": 3}), {"data.flip": [0]})
    setr.sweep(base.replace({"data.workers": 1}), {"data.flip": [0]})  # has no effect


def test_settings_that_cannot_be_built_are_found_before_the_first_training(base):
    with pytest.raises(SetrError, match="nope"):
        setr.sweep(base, {"model.encoder": ["vit_tiny_patch16_224", "nope"]})
    assert not Path(base.out).exists()


def test_a_trial_that_fails_does_not_end_the_sweep(base):
    trials = setr.sweep(base.replace({"train.steps": 3}), {"optim.lr": [1e30, 1e-2]})
    assert "lower --optim.lr" in trials[0].problem
    assert trials[0].miou is None
    assert trials[1].miou is not None
    text = sweep_text(trials)
    assert text.splitlines()[1].startswith("0.01")
    assert "failed: " in text.splitlines()[2]
    values = json.loads((Path(base.out) / "results.json").read_text())
    assert values["complete"]


def test_a_trial_that_another_process_trains_is_left_to_it(base, tmp_path):
    trial = Trial({"data.flip": 0}, base.replace({"out": str(tmp_path / "sweep" / "a")}))
    code = (
        "import os, sys; from setr.processes.lock import open_locked; "
        "open_locked(sys.argv[1], os.O_RDWR, 'lockf'); print('held', flush=True); input()"
    )
    trial.settings_file.parent.mkdir(parents=True)
    lock = trial.settings_file.with_suffix(".lock")
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with _claimed(trial) as claimed:
            assert not claimed
        other.communicate(b"\n")
    with _claimed(trial) as claimed:
        assert claimed
    assert not lock.exists()
    (group,) = compared([trial])
    assert _note(group) == "1 not trained yet"


def test_a_run_below_the_median_of_three_others_ends(tmp_path):
    others = [write_log(tmp_path / str(i), {2: 0.1 * i, 4: 0.5}) for i in (1, 2, 3)]
    late = write_log(tmp_path / "late", {2: 0.9})
    stop = MedianStop(tmp_path / "own", 0, others)
    stop.line({"step": 2, "loss": 1.0})
    stop.line({"step": 2, "val": {"miou": 0.25}})  # above 0.2
    assert not stop.ended
    stop.line({"step": 4, "val": {"miou": 0.1}})  # 0.25, its best, is below 0.5
    assert stop.ended == "mIoU 25.00 is below 50.00, the median of 3 runs at this step"
    # two others are too few, and one that has not come so far is none
    stop = MedianStop(tmp_path / "own", 0, [*others[:2], late])
    stop.line({"step": 4, "val": {"miou": 0.0}})
    assert not stop.ended
    # a run that continues remembers its best
    write_log(tmp_path / "own", {2: 0.6, 3: 0.1})
    stop = MedianStop(tmp_path / "own", 2, others)
    stop.line({"step": 4, "val": {"miou": 0.1}})
    assert not stop.ended
    # also if it was stopped between two evaluations, and that it had ended
    stop = MedianStop(tmp_path / "own", 5, others)
    stop.line({"step": 6, "loss": 1.0})
    assert (stop.best, stop.ended) == (0.6, "")
    write_log(tmp_path / "behind", {2: 0.1, 4: 0.2})
    assert MedianStop(tmp_path / "behind", 4, others).ended
    assert not MedianStop(tmp_path / "behind", 5, others).ended


def test_a_trial_stopped_at_its_early_end_does_not_go_on(base, monkeypatch):
    config = base.replace({"train.steps": 4, "train.eval_every": 2, "optim.lr": 1e-9})
    monkeypatch.setattr("setr.median_stop.LEAST", 1)
    write_log(Path(config.out, "other"), {2: 1.0, 4: 1.0})
    own = config.replace({"out": str(Path(config.out, "own"))})

    def stop(out: Path, step: int) -> MedianStop:
        return MedianStop(out, step, [Path(config.out, "other")])

    with monkeypatch.context() as patch:
        stop_after(patch, 2)  # its evaluation comes first, and ends it
        with pytest.raises(SetrError, match="stopped after step 2"):
            setr.train(own, trackers=[stop])
    assert setr.train(own, trackers=[stop], resume=True)["steps"] == 2


def test_states_of_a_trial_that_was_killed_when_it_had_finished_are_removed(base, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("setr.trials.remove_states", lambda folder: None)
        (trial,) = setr.sweep(base, {"optim.lr": [0.1]})
    assert (trial.run / "last").is_dir()
    setr.sweep(base, {"optim.lr": [0.1]})
    assert not list((trial.run / "last").glob("*"))


def test_runs_that_fall_behind_are_marked(base, monkeypatch):
    config = base.replace({"train.steps": 4, "train.eval_every": 2})
    monkeypatch.setattr("setr.median_stop.LEAST", 1)
    trials = setr.sweep(config, {"optim.lr": [1e-2, 1e-9]}, median_stop=True)
    assert not trials[0].ended_early
    first, second = (t.metrics["single_scale"]["miou"] for t in trials)
    assert trials[1].ended_early == (second < first)
    with pytest.raises(UsageError, match="eval_every"):
        setr.sweep(base, {"optim.lr": [1]}, median_stop=True)


def test_dots_are_placed_to_scale():
    places = _places([1e-4, 1e-3, 1e-2])
    assert places["0.001"] == pytest.approx((places["0.0001"] + places["0.01"]) / 2)
    places = _places([0.1, 0.2, 0.4])
    assert places["0.2"] == pytest.approx(places["0.1"] + (places["0.4"] - places["0.1"]) / 3)
    places = _places(["a", "b", "c"])
    assert places["'b'"] == pytest.approx((places["'a'"] + places["'c'"]) / 2)


SETTINGS = ("--data.root scenes:8 --data.workers 0 --train.steps 1 "
            "--train.batch-size 2 --model.name setr_naive_nano --train.samples 0")  # fmt: skip


def test_the_command_types_values_as_train_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "scratch", *SETTINGS.split(), "--vary", "data.crop-size", "32 32", "48 32"]
    assert main([*words, "--vary", "data.photometric", "true", "false", "--json"]) == OK
    out, err = capsys.readouterr()
    found = json.loads(out)
    settings = [v["settings"] for v in found["variations"]]
    assert {tuple(s["data.crop_size"]) for s in settings} == {(32, 32), (48, 32)}
    assert {s["data.photometric"] for s in settings} == {True, False}
    run = Path("runs/sweep-scratch/crop-size=48x32_photometric=false_seed=0")
    assert Config.load(run / "config.yaml").data.crop_size == (48, 32)
    assert "the best model: runs/sweep-scratch/" in err
    # the settings file trains the same
    file = run.parent / "settings" / f"{run.name}.yaml"
    assert main(["train", str(file), "--out", "runs/again"]) == OK
    weights = [(r / "model.safetensors").read_bytes() for r in (run, Path("runs/again"))]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--vary is missing"),
        ("--vary", "give a setting and its values"),
        ("--vary optim.lr", "no values"),
        ("--vary optim.lr 1e-3 --vary optim.lr 1e-4", "given twice"),
        ("--vary optim.lr 1e-3 --optim.lr 1", "--optim.lr: is varied, too"),
        ("--vary data.flip maybe", "--data.flip maybe: give a number"),
        ("--vary data.photometric 1", "give true or false"),
        ("--vary optim.lr 1e-3 --resume", "give the same command again"),
        ("--vary optim.lr 1e-3 --train.seed 3", "--seeds"),
        ("--vary optim.lr 1e-3 --seeds 0", "give at least 1"),
        ("--vary optim.lr 1e-3 --lr 3", "did you mean --optim.lr"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "scratch", *words.split()]) == USAGE
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_recipe_comes_first(capsys):
    assert main(["sweep", "--optim.lr", "3", "scratch"]) == USAGE
    assert "sweep needs the recipe before --optim.lr" in capsys.readouterr().err
    assert main(["tune"]) == USAGE
    assert "did you mean 'sweep'" in capsys.readouterr().err


def test_a_file_is_no_folder_for_a_sweep(base, tmp_path):
    (tmp_path / "notes").write_text("somebody's")
    with pytest.raises(UsageError, match="notes: cannot write: Not a directory"):
        setr.sweep(base.replace({"out": str(tmp_path / "notes")}), {"optim.lr": [1e-3]})


def test_several_processes_of_one_launcher_are_refused(base, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29400")
    with pytest.raises(UsageError, match="once for each GPU"):
        setr.sweep(base, {"data.flip": [0]})


def test_the_command_fails_if_a_trial_did(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = SETTINGS.replace("--train.steps 1", "--train.steps 3 --data.crop-size 32 32")
    varied = ["--vary", "optim.lr", "1e30"]
    assert main(["sweep", "scratch", *words.split(), "--optim.name", "sgd", *varied]) == FAILED
    out, err = capsys.readouterr()
    assert "n/a" in out
    assert "the best model" not in err


def test_metrics_that_cannot_be_read_are_named(base):
    (trial,) = setr.sweep(base, {"data.flip": [0]})
    for text in ("{", "[]", "{}", '{"steps": 1, "seconds": 1, "single_scale": 3}'):
        (trial.run / "metrics.json").write_text(text)
        with pytest.raises(SetrError, match="not the metrics of a run"):
            setr.sweep(base, {"data.flip": [0]})
