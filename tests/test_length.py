"""How long a run trains: steps, epochs that become steps, and patience with no progress."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import setr.estimate as estimating
import setr.training.best as best
from setr.checkpoint import newest_state
from setr.cli import main
from setr.config import Config, TrainConfig
from setr.engine import train
from setr.errors import OK, USAGE, SetrError
from setr.hub import from_pretrained
from setr.paper_results import collect
from setr.training.resolved import announce, with_steps
from setr.training.runfolder import LAST
from tests.conftest import tiny_config
from tests.runs import stop_after, with_train


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch) -> None:
    monkeypatch.setattr("setr.training.telemetry.matmul_rate", lambda *_: 1.0)


@pytest.fixture
def scores(monkeypatch) -> Iterator[list[float]]:
    """What the next tests of weights find; an evaluation more is an error."""
    left = [0.2, 0.5, 0.3, 0.4]
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": left.pop(0)})
    return left


def impatient(out: Path, **changes: object) -> Config:
    return tiny_config(out, **{"steps": 9, "eval_every": 1, "patience": 2, **changes})


def test_a_run_that_lost_patience_is_finished(tmp_path, scores, capsys):
    config = impatient(tmp_path / "run")
    metrics = train(config)
    said = "ended after step 4 of 9: 2 evaluations in a row found no better val mIoU than 0.5000"
    assert said in capsys.readouterr().err
    assert (metrics["steps"], metrics["single_scale"]["miou"]) == (4, 0.5)
    assert from_pretrained(config.out)[1].metrics == {"val mIoU": 0.5, "step": 2}
    assert newest_state(Path(config.out, LAST)).step == 4
    (run,) = collect(tmp_path)
    assert run.miou == {"single_scale": 50.0}
    again = train(config, resume=True)  # neither trains nor tests
    assert said in capsys.readouterr().err
    assert again["single_scale"] == metrics["single_scale"]
    scores += [0.6, 0.1, 0.7]
    longer = train(with_train(config, patience=0, steps=7), resume=True)
    assert (longer["steps"], longer["single_scale"]["miou"]) == (7, 0.7)


def test_a_resumed_run_loses_patience_at_the_same_step(tmp_path, scores, monkeypatch):
    config = impatient(tmp_path / "run", patience=3)
    scores.append(0.1)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(SetrError, match="stopped after step 4"):
            train(config)
    assert scores == [0.4, 0.1]  # the test of step 4 is left to the run that continues
    assert train(config, resume=True)["steps"] == 5


def test_patience_counts_from_the_last_better_test(tmp_path, scores):
    scores[:] = [0.2, 0.2, 0.3, 0.1, 0.4, 0.1]
    metrics = train(impatient(tmp_path / "run", steps=6))
    assert (metrics["steps"], metrics["single_scale"]["miou"], scores) == (6, 0.4, [])


def test_a_test_that_is_only_as_good_costs_patience(tmp_path, scores):
    scores[:] = [0.5, 0.5, 0.5, 0.9]
    assert train(impatient(tmp_path / "run"))["steps"] == 3


def test_patience_needs_tests_and_room(tmp_path, capsys):
    with pytest.raises(SetrError, match=r"train\.patience 2: .* with train\.eval_every"):
        TrainConfig(patience=2)
    announce(impatient(tmp_path, steps=4), 12)
    assert "warning: train.patience" not in capsys.readouterr().err
    announce(impatient(tmp_path, steps=3), 12)
    assert "cannot stop the training before step 3; it has 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "steps"),
    [(2, 12, 8, 3), (2, 13, 8, 4), (1.1, 100, 1, 110), (0.001, 10, 8, 1), (3, 4, 4, 3)],
)
def test_epochs_become_steps(tmp_path, epochs, images, batch, steps):
    config = tiny_config(tmp_path, steps=0, epochs=epochs, batch_size=batch)
    assert with_steps(config, images) == tiny_config(tmp_path, steps=steps, batch_size=batch)


def test_epochs_count_the_batch_that_auto_finds(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, steps=0, epochs=2, batch="auto")
    cpu = torch.device("cpu")
    monkeypatch.setattr(estimating, "largest_batch", lambda *_, **__: (3, 0))
    found = with_steps(estimating.with_chosen_batch(config, 9, 12, cpu), 12).train
    assert (found.batch_size, found.steps, found.epochs) == (3, 8, 0)
    before = {"train.batch_size": 4, "train.steps": 6}
    chosen = estimating.with_chosen_batch(config, 9, 12, cpu, before)
    found = with_steps(chosen, 12, before).train
    assert (found.batch_size, found.steps) == (4, 6)


def test_a_length_is_given_once():
    assert TrainConfig(epochs=20) == TrainConfig(steps=0, epochs=20)
    assert TrainConfig().steps == 80_000
    for text in ("steps: 4, epochs: 20", "steps: 0", "epochs: -1", "epochs: .nan"):
        with pytest.raises(SetrError, match=r"train\.epochs"):
            Config.from_yaml(f"train: {{{text}}}")
    given = Config.from_yaml("train: {epochs: 20}")
    assert Config.from_yaml(given.to_yaml()) == given


def test_epochs_on_the_command_line(tmp_path, capsys, monkeypatch):
    """In place of the steps of a file, in steps ever after, and steps in place of its epochs."""
    monkeypatch.chdir(tmp_path)
    Path("steps.yaml").write_text(tiny_config(tmp_path / "run", samples=0).to_yaml())
    assert main(["train", "steps.yaml", "--train.epochs", "0.5"]) == OK
    assert "train.epochs 0.5: 3 steps, of 12 images in batches of 2" in capsys.readouterr().err
    written = Config.load(Path("run/config.yaml"))
    assert written == tiny_config(tmp_path / "run", samples=0, steps=3)
    assert json.loads(Path("run/metrics.json").read_text())["steps"] == 3
    assert main(["train", "run", "--resume"]) == OK
    assert main(["train", "steps.yaml", "--train.epochs=0.5", "--resume"]) == OK
    capsys.readouterr()
    assert main(["train", "run", "--resume", "--train.epochs", "1"]) == USAGE
    assert "this is 6 steps, the run to continue has 3" in capsys.readouterr().err
    epochs = dataclasses.replace(written, out="other", train=TrainConfig(epochs=9, batch_size=2))
    Path("epochs.yaml").write_text(epochs.to_yaml())
    assert main(["train", "epochs.yaml", "--train.steps", "1"]) == OK
    assert Config.load(Path("other/config.yaml")).train.steps == 1
    assert main(["train", "steps.yaml", "--train.steps", "1", "--train.epochs", "1"]) == USAGE
    assert "--train.steps 1 and --train.epochs 1: give one of them" in capsys.readouterr().err
