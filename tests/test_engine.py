"""The training loop: resume, accumulation, faults, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import setr.checkpoint as checkpoint
import setr.data.loader as loader
import setr.data.workers as processes
import setr.training.best as best
import setr.training.build as build
import setr.training.preparation as preparing
import setr.training.run as running
from setr import distributed
from setr.checkpoint import newest_state
from setr.cli import main
from setr.config import Config, DataConfig, ModelConfig
from setr.datasets import open_dataset
from setr.engine import train
from setr.errors import DATA_CHECK_FAILED, FAILED, INTERRUPTED, USAGE, SetrError
from setr.hub import from_pretrained
from setr.images import encode_png
from setr.paper_results import collect
from setr.training.build import build_model
from setr.training.resolved import announce
from setr.training.runfolder import LAST, RunFolder
from tests.conftest import tiny_config, write_scene_folders
from tests.runs import (
    assert_same_weights,
    final_state,
    killed_and_resumed,
    log_lines,
    stop_after,
    stopped_and_resumed,
    with_train,
)


def resumable(out: Path, workers: int = 0) -> Config:
    """Accumulation, a moving average and random depth, all of which a state must hold."""
    config = tiny_config(out, steps=5, accumulate=2, ema=0.9)
    model = dataclasses.replace(config.model, drop_path=0.2)
    data = dataclasses.replace(config.data, workers=workers)
    return dataclasses.replace(config, model=model, data=data)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(resumable(out))
    return out


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop_at", [1, 3])
def test_resume_equals_uninterrupted_bit_for_bit(
    tmp_path, monkeypatch, uninterrupted, workers, stop_at
):
    config = resumable(tmp_path / "parts", workers)
    stopped_and_resumed(config, monkeypatch, at=stop_at)
    assert_same_weights(uninterrupted, config)
    saved = [from_pretrained(out)[0].state_dict() for out in (uninterrupted, tmp_path / "parts")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_accumulation_equals_the_larger_batch(tmp_path, monkeypatch):
    """The gradient is normalised over the whole step; batch norm is held still to show it."""
    images = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8)
    masks = torch.randint(9, (4, 64, 64), dtype=torch.uint8)
    masks[0, :32] = 255  # unequal numbers of counted pixels
    gradients = []
    for accumulate in (1, 4):
        config = tiny_config(tmp_path / str(accumulate), batch_size=4, accumulate=accumulate)
        run = running.Run(config, RunFolder(Path(config.out)))
        run.model.eval()
        monkeypatch.setattr(run.model, "train", lambda: None)
        monkeypatch.setattr(run.optimizer, "zero_grad", lambda set_to_none: None)
        run.train_step(images, masks)
        gradients.append([p.grad for p in run.model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    results = [train(tiny_config(tmp_path / name)) for name in ("a", "b")]
    assert results[0]["single_scale"]["iou"] == results[1]["single_scale"]["iou"]
    other = train(tiny_config(tmp_path / "c", seed=1))
    assert other["single_scale"]["iou"] != results[0]["single_scale"]["iou"]


def test_a_run_leaves_a_model_directory(config):
    metrics = train(config)
    out = Path(config.out)
    names = {"config.yaml", "config.json", "model.safetensors", "README.md", "metrics.json"}
    names |= {"log.jsonl", "log.csv", "samples", "last"}
    assert names == {p.name for p in out.iterdir()}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert {"miou", "pixel_accuracy", "mean_accuracy", "iou"} <= metrics["single_scale"].keys()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert {"main", "aux_1", "lr", "images_per_second", "data_wait_percent"} <= lines[0].keys()
    passes = config.train.batch_size / metrics["data"]["train_images"]
    assert all(line["epoch"] == pytest.approx(line["step"] * passes, abs=1e-4) for line in lines)
    assert Config.load(out / "config.yaml") == config


def test_a_name_and_a_folder_of_data_are_enough(tmp_path, config):
    data = write_scene_folders(tmp_path / "data", {"train": 2, "val": 1})
    (tmp_path / "short.yaml").write_text(config.to_yaml())
    metrics = train(str(tmp_path / "short.yaml"), data=data)
    assert metrics["data"]["train_images"] == 2
    assert Config.load(Path(config.out, "config.yaml")).data.root == str(data)
    assert train(config.out, resume=True)["steps"] == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("finetun", "recipe 'finetun' is unknown; nearest: finetune"),
        ("runs/gone", "runs/gone: no such run folder or settings file"),
        ({"recipe": "demo"}, "config dict: give a recipe's name, a config.yaml, or a Config"),
    ],
)
def test_what_is_no_name_of_settings_is_one_line(given, message):
    with pytest.raises(SetrError, match=message) as caught:
        train(given)
    assert caught.value.code == USAGE


def test_an_existing_run_is_never_overwritten_silently(config):
    train(config)
    with pytest.raises(SetrError, match="--overwrite") as caught:
        train(config)
    assert caught.value.code == USAGE
    train(config, overwrite=True)


def test_files_that_are_no_runs_are_never_overwritten(config):
    out = Path(config.out)
    out.mkdir(parents=True)
    for name in ("README.md", "config.json", "notes.txt"):
        (out / name).write_text("mine")
    with pytest.raises(
        SetrError, match=r"not a run folder, but holds config\.json, README\.md"
    ) as caught:
        train(config, overwrite=True)
    assert caught.value.code == USAGE
    assert {path.read_text() for path in out.iterdir()} == {"mine"}
    for name in ("README.md", "config.json"):
        (out / name).unlink()
    train(config, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_an_overwritten_run_leaves_nothing_of_the_old_one_and_can_be_resumed(
    config, monkeypatch, capsys
):
    out = Path(config.out)
    train(with_train(config, save_every=1, keep_states=2))  # states of steps 3 and 4
    assert main(["eval", str(out), "scenes:20", "--workers", "0"]) == 0
    assert (out / "eval-val" / "report.html").is_file()
    (out / "trace.json").touch()
    new = with_train(config, seed=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(SetrError, match="stopped after step 1"):
            train(new, overwrite=True)
    assert {p.name for p in out.iterdir()} == {
        *("config.yaml", "log.jsonl", "log.csv", "samples", "last")
    }
    assert Config.load(out / "config.yaml") == new
    assert [p.name for p in (out / LAST).iterdir()] == ["step-00000001"]
    train(new, resume=True)
    assert "continuing after step 1" in capsys.readouterr().err
    (run,) = collect(out.parent)
    assert run.provenance["seed"] == 1
    assert (run.data, len(run.content)) == ("scenes", 12)


def test_figures_of_a_test_go_with_the_model_they_are_of(config, monkeypatch):
    figures = iter([0.2, 0.1, 0.3])
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": next(figures)})
    tests, review = (Path(config.out, name) for name in ("eval-val", "review-val"))
    train(config)
    for folder in (tests, review):
        folder.mkdir()
    for name in ("metrics.json", "images.csv", "groups.csv", "report.html", "notes.txt"):
        (tests / name).touch()
    (review / "review.json").touch()
    train(with_train(config, steps=5), resume=True)  # no better
    assert len([*tests.iterdir(), *review.iterdir()]) == 6
    train(with_train(config, steps=6), resume=True)
    assert [path.name for path in tests.iterdir()] == ["notes.txt"]
    assert not review.exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (None, "is missing"),
        ("config.json", "cannot be read"),
        ("model.safetensors", "cannot be read"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_a_run_whose_model_is_gone_or_damaged_has_it_from_its_state_or_keeps_the_next(
    config, monkeypatch, capsys, name, problem, later
):
    """A copy of the states alone, a disk that was full, or a file edited by hand."""
    figures = iter([0.2, 0.1, 0.15])
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": next(figures)})
    train(config)
    if later:  # the state of step 5 has other weights than the best
        train(with_train(config, steps=5), resume=True)
    saved = from_pretrained(config.out)[0].state_dict()
    file = Path(config.out, name or "model.safetensors")
    file.unlink() if name is None else os.truncate(file, file.stat().st_size // 2)
    capsys.readouterr()
    metrics = train(with_train(config, steps=6 if later else 4), resume=True)
    found = "the next one is saved" if later else "the state has it"
    assert re.search(f"the best model {problem}.*; {found}", capsys.readouterr().err)
    model, info = from_pretrained(config.out)
    assert info.metrics == {"val mIoU": 0.15, "step": 6} if later else {"val mIoU": 0.2, "step": 4}
    assert metrics["single_scale"]["miou"] == info.metrics["val mIoU"]
    same = [torch.equal(value, saved[key]) for key, value in model.state_dict().items()]
    assert all(same) != later


def test_a_refused_overwrite_leaves_the_run_as_it_was(config):
    train(config)
    before = {p: p.read_bytes() for p in Path(config.out).rglob("*") if p.is_file()}
    nowhere = config.replace({"data.root": "nowhere"})
    with pytest.raises(SetrError, match="no such file or folder"):
        train(nowhere, overwrite=True)
    with pytest.raises(SetrError, match="--resume continues a run and --overwrite replaces it"):
        train(config, resume=True, overwrite=True)
    assert before == {p: p.read_bytes() for p in Path(config.out).rglob("*") if p.is_file()}


def test_a_continued_run_has_no_figures_of_other_settings(config, monkeypatch):
    train(config)
    stop_after(monkeypatch, 5)
    with pytest.raises(SetrError, match="stopped after step 5"):
        train(with_train(config, steps=6), resume=True)
    assert not Path(config.out, "metrics.json").exists()
    assert Path(config.out, "model.safetensors").exists()


def test_an_empty_folder_is_free_and_others_are_named(config):
    out = Path(config.out)
    (out / "lost+found").mkdir(parents=True)  # a fresh volume
    (out / ".hidden").touch()
    RunFolder(out)
    (out / "notes.txt").touch()
    with pytest.raises(SetrError, match=r"not a run folder, but holds notes\.txt;") as caught:
        RunFolder(out)
    assert caught.value.code == USAGE
    with pytest.raises(SetrError, match="not a folder for a run"):
        RunFolder(out / "notes.txt")
    RunFolder(out, overwrite=True)
    (out / "config.yaml").touch()
    with pytest.raises(SetrError, match="this run exists; add --overwrite to replace it"):
        RunFolder(out)
    (out / LAST / "step-00000002").mkdir(parents=True)
    with pytest.raises(SetrError, match="this run exists; add --resume to continue it, --overw"):
        RunFolder(out)


def in_another_process(function) -> int:
    """The status a forked process ends with."""
    child = os.fork()
    if child == 0:
        os._exit(function())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and its locks")
def test_two_processes_never_train_in_one_folder(config, monkeypatch):
    def fails(message: str, **options: bool) -> int:
        try:
            RunFolder(Path(config.out), **options).open(config)
        except SetrError as error:
            return int(message not in str(error))
        return 2

    original, statuses = running.Run.train_step, []
    process = f"process {os.getpid()} on"

    def step(self, images, masks):
        if self.step == 2:
            for options in ({"resume": True}, {"overwrite": True}):
                statuses.append(in_another_process(partial(fails, process, **options)))
        return original(self, images, masks)

    monkeypatch.setattr(running.Run, "train_step", step)
    train(with_train(config, save_every=1))
    assert statuses == [0, 0]
    assert not Path(config.out, ".lock").exists()
    assert in_another_process(lambda: fails("", overwrite=True)) == 2


def test_a_run_that_came_and_went_while_data_were_checked_is_kept(config, monkeypatch):
    original = preparing.checked_pixels

    def slow(*arguments):
        monkeypatch.setattr(preparing, "checked_pixels", original)
        train(config)
        return original(*arguments)

    monkeypatch.setattr(preparing, "checked_pixels", slow)
    with pytest.raises(SetrError, match="this run exists"):
        train(with_train(config, seed=1))
    assert Path(config.out, "metrics.json").exists()


def test_a_folder_where_nothing_can_be_written_is_refused_before_data_are_opened(
    config, monkeypatch
):
    monkeypatch.setattr(preparing, "open_splits", lambda *_: pytest.fail("the folder comes first"))
    Path(config.out).symlink_to("gone")
    with pytest.raises(SetrError, match="which leads nowhere") as caught:
        train(config)
    assert caught.value.code == USAGE
    Path(config.out).unlink()
    Path(config.out).parent.joinpath("file").touch()
    inside = dataclasses.replace(config, out=str(Path(config.out).parent / "file" / "run"))
    with pytest.raises(SetrError, match=r"cannot write in .*file: Not a dir.*another .*--out"):
        train(inside, overwrite=True)


def test_what_was_trained_is_saved_before_a_missing_file_ends_the_run(
    tmp_path, monkeypatch, capsys
):
    data = write_scene_folders(tmp_path / "data", {"train": 4, "val": 2})
    settings = DataConfig(root=str(data), crop_size=(64, 64), workers=0)
    configs = [
        dataclasses.replace(tiny_config(tmp_path / name, steps=4), data=settings)
        for name in ("whole", "broken")
    ]
    train(configs[0])
    original = running.Run.train_step

    def losing(self, images, masks):
        if self.step == 2 and not self.folder.state:
            (data / "images" / "train").rename(tmp_path / "away")
        return original(self, images, masks)

    with monkeypatch.context() as patch:
        patch.setattr(running.Run, "train_step", losing)
        with pytest.raises(SetrError, match="no such file"):
            train(configs[1])
    assert "the state of step 3 is saved" in capsys.readouterr().err
    (tmp_path / "away").rename(data / "images" / "train")
    train(configs[1], resume=True)
    assert_same_weights(*configs)


def test_a_batch_may_be_larger_than_the_split(tmp_path, capsys):
    data = dataclasses.replace(tiny_config(tmp_path).data, root="scenes:3")
    config = dataclasses.replace(tiny_config(tmp_path / "run", steps=2, batch_size=8), data=data)
    train(config)
    said = capsys.readouterr().err
    assert "split 'train' has 3 images; every batch of 8 has several crops of the same" in said


def test_every_test_of_the_weights_is_told(config, monkeypatch, capsys):
    evaluate, scores = best.evaluate_split, iter((0.2, 0.125, 0.3))
    monkeypatch.setattr(
        best, "evaluate_split", lambda *a, **o: {**evaluate(*a, **o), "miou": next(scores)}
    )
    train(with_train(config, steps=3, eval_every=1))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [re.sub(r", loss \d\.\d{3}", ", loss", line) for line in told] == [
        "step 1: val mIoU 20.00 %, loss; the best so far",
        "step 2: val mIoU 12.50 %, loss; the best was 20.00 %",
        "step 3: val mIoU 30.00 %, loss; the best so far",
    ]


def test_resume_refuses_fewer_steps_than_it_has(config):
    train(config)
    before = Path(config.out, "config.yaml").read_bytes()
    with pytest.raises(SetrError, match=r"train\.steps 3: .* has 4 already; give at") as caught:
        train(with_train(config, steps=3), resume=True)
    assert caught.value.code == USAGE
    assert Path(config.out, "config.yaml").read_bytes() == before


def test_resume_refuses_another_model(config):
    train(config)
    other = config.replace({"model.channels": 8})
    with pytest.raises(SetrError, match="another model"):
        train(other, resume=True)


def test_resume_refuses_other_data_or_classes(config):
    train(config)
    other = config.replace({"data.root": "scenes:13"})
    with pytest.raises(SetrError, match=r"other data or classes: data\.train\.pairs 13, not 12"):
        train(other, resume=True)


@pytest.mark.parametrize(("freeze", "features"), [(0, "none"), (-1, "once")])
def test_a_run_continues_without_the_weights_it_began_with(
    tmp_path, config, freeze, features, monkeypatch
):
    train(config)
    first = Path(config.out)
    model = dataclasses.replace(config.model, pretrained=str(first), freeze=freeze)
    second = with_train(dataclasses.replace(config, model=model), cache_features=features)
    second = dataclasses.replace(second, out=str(tmp_path / "second"))
    train(second)
    first.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(
        "setr.training.features._compute", lambda *_: pytest.fail("features are known")
    )
    assert train(with_train(second, steps=5), resume=True)["steps"] == 5


def test_the_figures_are_of_the_model_in_the_folder_after_a_crash(config, monkeypatch):
    """The run continues otherwise than it went before, and never scores so well again."""
    evaluate, scores = best.evaluate_split, iter((0.2, 0.5, 0.3))
    monkeypatch.setattr(
        best, "evaluate_split", lambda *a, **o: {**evaluate(*a, **o), "miou": next(scores)}
    )
    config = with_train(config, steps=3, eval_every=1, save_every=1000)
    crashing = running.Run.train_step

    def crash(self, images, masks):
        if self.step == 2:
            raise SetrError("loss is nan")
        return crashing(self, images, masks)

    monkeypatch.setattr(running.Run, "train_step", crash)
    with pytest.raises(SetrError, match="nan"):
        train(config)
    monkeypatch.setattr(running.Run, "train_step", crashing)
    other = config.replace({"optim.lr": 0.001})
    assert train(other, resume=True)["single_scale"]["miou"] == 0.5
    kept = json.loads(Path(config.out, "config.json").read_text())["metrics"]
    assert kept == {"val mIoU": 0.5, "step": 2}


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize(
    ("moment", "step"),
    [("step-00000002", 1), ("model.safetensors", 2), ("config.json", 2), ("README.md", 2)],
)
def test_the_figures_are_of_the_model_in_the_folder_wherever_a_run_is_killed(
    config, monkeypatch, moment, step, ema
):
    """In a second, better test, before a file has its name; the run then goes elsewhere."""
    scores, tested = iter((0.2, 0.5, 0.1, 0.1)), {}

    def evaluate(model, *_, **__):
        miou = next(scores)
        tested[miou] = {k: v.clone() for k, v in model.state_dict().items()}
        return {"miou": miou}

    monkeypatch.setattr(best, "evaluate_split", evaluate)
    replace = os.replace

    def dying(source, target):
        if 0.5 in tested and Path(target).name == moment:
            raise KeyboardInterrupt
        replace(source, target)

    config = with_train(config, steps=3, eval_every=1, ema=ema)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    other = with_train(config, ema=0.0).replace({"optim.lr": 0.001})
    metrics = train(other, resume=True)
    model, info = from_pretrained(config.out)
    miou = {1: 0.2, 2: 0.5}[step]
    assert info.metrics == {"val mIoU": miou, "step": step}
    assert metrics["single_scale"]["miou"] == miou
    assert all(torch.equal(v, tested[miou][k]) for k, v in model.state_dict().items())


def test_a_model_newer_than_every_state_is_replaced(config, monkeypatch, capsys):
    """The disk was too full for the state of a better model, and the run was killed."""
    scores = iter((0.2, 0.5, 0.1, 0.1))
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": next(scores)})
    original = checkpoint._write_tensors

    def full(part: Path, tensors: object) -> dict[str, object]:
        if "step-00000002" in part.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(part, tensors)

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    killed_and_resumed(with_train(config, steps=3, eval_every=1), monkeypatch, at=2)
    assert "the best model is of step 2, not of step 1; the state has it" in capsys.readouterr().err
    assert from_pretrained(config.out)[1].metrics == {"val mIoU": 0.2, "step": 1}
    metrics = json.loads(Path(config.out, "metrics.json").read_text())
    assert metrics["single_scale"]["miou"] == 0.2


def test_resume_without_a_state_is_refused(config):
    with pytest.raises(SetrError, match="no training state to resume from"):
        train(config, resume=True)


def test_a_restart_by_the_launcher_resumes_by_itself(config, monkeypatch):
    train(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = train(config)
    assert (
        again["single_scale"]
        == json.loads((Path(config.out) / "metrics.json").read_text())["single_scale"]
    )


def test_a_full_disk_costs_the_save_and_not_the_run(config, monkeypatch, capsys):
    saves = []

    def full(*arguments: object) -> None:
        saves.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    metrics = train(with_train(config, save_every=2))
    assert metrics["single_scale"]["miou"] is not None
    assert len(saves) == 3  # after two steps, before the test and after it
    lines = capsys.readouterr().err
    nothing = "state of step 2 not saved (the disk is full); there is none before it, training goes"
    assert nothing in lines


def test_a_full_disk_leaves_the_state_before(config, monkeypatch, capsys):
    original = checkpoint._write_tensors

    def full(part: Path, tensors: object) -> dict[str, object]:
        if "step-00000002" in part.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(part, tensors)

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    stop_after(monkeypatch, 2)
    with pytest.raises(SetrError, match="--resume` from the state before, since this one was not"):
        train(with_train(config, save_every=1))
    assert "step 2 not saved (the disk is full); the one before stays" in capsys.readouterr().err


def test_a_stop_without_any_state_is_told_as_one(config, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    stop_after(monkeypatch, 1)
    with pytest.raises(SetrError, match=r"step 1, which could not be saved; .* --overwrite starts"):
        train(config)


def test_a_disk_that_was_full_all_the_time_leaves_nothing_to_continue_from(config, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    monkeypatch.setattr(best, "save_pretrained", full)
    with pytest.raises(SetrError, match=r"free the disk, then `setr train` with --overwrite"):
        train(config)


def test_a_model_that_could_not_be_written_is_a_failure_and_can_be_written_later(
    config, monkeypatch
):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(best, "save_pretrained", full)
        with pytest.raises(SetrError, match="no model could be written") as caught:
            train(config)
        assert caught.value.code == FAILED
    assert train(config, resume=True)["single_scale"]["miou"] is not None
    assert Path(config.out, "model.safetensors").is_file()


def test_a_signal_before_the_first_step_leaves_a_state_to_continue_from(tmp_path, monkeypatch):
    configs = [tiny_config(tmp_path / name, steps=2) for name in ("whole", "stopped")]
    train(configs[0])
    original = running.Run._next_batch

    def signalled(self, batches, interrupt):
        signal.raise_signal(signal.SIGTERM)
        return original(self, batches, interrupt)

    with monkeypatch.context() as patch:
        patch.setattr(running.Run, "_next_batch", signalled)
        with pytest.raises(SetrError, match="stopped after step 0; continue"):
            train(configs[1])
    train(configs[1], resume=True)
    assert_same_weights(*configs)


@pytest.mark.parametrize("kind", [RuntimeError, SetrError])
def test_what_was_trained_is_saved_before_a_test_that_fails_ends_the_run(
    config, monkeypatch, capsys, kind
):
    def failing(*arguments: object, **options: object) -> None:
        raise kind("the loader was killed")

    with monkeypatch.context() as patch:
        patch.setattr(best, "evaluate_split", failing)
        with pytest.raises(kind, match="the loader was killed"):
            train(with_train(config, eval_every=2))
    assert "the state of step 2 is saved" in capsys.readouterr().err
    train(with_train(config, eval_every=2), resume=True)
    lines = (Path(config.out) / "log.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "val" in line] == [2, 4]


def test_a_resumed_log_has_every_step_once(config, monkeypatch):
    config = with_train(config, save_every=3, steps=4, log_every=1)

    def torn_line(run):
        (run.folder.out / "log.jsonl").open("a").write('{"step": 4, "lo')

    killed_and_resumed(config, monkeypatch, at=3, last_words=torn_line)
    assert [line["step"] for line in log_lines(config)] == [1, 2, 3, 4]


def test_a_broken_state_is_one_clear_line(config):
    train(config)
    (state,) = Path(config.out, LAST).glob("step-*/rank-00000.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(SetrError, match="broken training state"):
        train(config, resume=True)


def test_bad_data_is_found_before_the_first_step(tmp_path):
    data = write_scene_folders(tmp_path / "data", {"train": 12, "val": 2})
    for i in range(12):
        (data / "labels" / "train" / f"scene_{i:03d}.png").write_bytes(b"no image")
    config = tiny_config(tmp_path / "run")
    config = config.replace({"data.root": str(data)})
    with pytest.raises(SetrError, match=r"12 of 12 pairs.*and 2 more") as caught:
        train(config)
    assert caught.value.code == DATA_CHECK_FAILED
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "setr_pup_bse"}, "model 'setr_pup_bse' is unknown; nearest: setr_pup_base"),
        ({"encoder": "vit_smal_patch16_224"}, "'vit_smal_patch16_224' is not a timm model"),
        ({"freeze": 99}, "freeze 99: this encoder has 2 blocks"),
        ({"pretrained": "lvd14m", "encoder": "vit_small_patch14_dinov2"}, "timm has lvd142m"),
        ({"pretrained": "nowhere.pth"}, r"nowhere\.pth: no such weight file"),
        ({"pretrained_resnet": "gluon_in1k"}, "has no ResNet in front"),
    ],
)
def test_names_are_checked_before_data_are_opened(config, settings, message, monkeypatch):
    monkeypatch.setattr(preparing, "open_splits", lambda *_: pytest.fail("names come first"))
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, **settings))
    with pytest.raises(SetrError, match=message) as caught:
        train(wrong)
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({}, 2, "train.cache_features: needs a single process; start without torchrun"),
        ({"name": "fcn_r101"}, 1, "resnet101c is not a transformer, its maps differ in size"),
    ],
)
def test_features_that_cannot_be_stored_are_refused_before_data_are_opened(
    config, monkeypatch, settings, processes, message
):
    monkeypatch.setattr(preparing, "open_splits", lambda *_: pytest.fail("the model comes first"))
    monkeypatch.setattr(build, "world", lambda: processes)
    model = dataclasses.replace(config.model, channels=None, taps=None, freeze=-1, **settings)
    wrong = dataclasses.replace(config, model=model)
    with pytest.raises(SetrError, match=message) as caught:
        train(with_train(wrong, cache_features="once"))
    assert caught.value.code == USAGE


@pytest.mark.parametrize("blank", ["train", "val"])
def test_splits_without_labelled_pixels_are_refused(config, tmp_path, blank):
    folder = write_scene_folders(tmp_path / "data", {"train": 3, "val": 2})
    (folder / "data.yaml").write_text("classes: [a, b]\nlabel_map: {0: a, 99: b, 255: ignore}\n")
    for split in ("train", "val"):
        for mask in (folder / "labels" / split).iterdir():
            mask.write_bytes(encode_png(np.full((48, 48), 255 if split == blank else 99, np.uint8)))
    with pytest.raises(SetrError) as caught:
        train(config, data=str(folder))
    assert caught.value.code == DATA_CHECK_FAILED
    assert f"all mask pixels of split '{blank}' of data are ignored; map ids" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(config.out, "model.safetensors").exists()


@pytest.mark.parametrize("lora", [0, 2])
def test_weights_that_do_not_fit_are_refused_before_data_are_checked(config, lora, monkeypatch):
    train(config)
    wide = dict(load_file(Path(config.out, "model.safetensors")))
    name = "encoder.vit.blocks.0.mlp.fc1.weight"
    wide[name] = torch.zeros(7, 7)
    path = Path(config.out, "wide.safetensors")
    save_file(wide, path)
    monkeypatch.setattr(preparing, "checked_pixels", lambda *_: pytest.fail("weights come first"))
    for source, message in (
        (path, rf"{name} is \(7, 7\), the model's is"),
        (__file__, "a configuration file"),
    ):
        model = dataclasses.replace(config.model, pretrained=str(source), lora_rank=lora)
        with pytest.raises(SetrError, match=message) as caught:
            train(dataclasses.replace(config, model=model, out=f"{config.out}-next"))
        assert caught.value.code == USAGE


@pytest.mark.parametrize("changed", [{"precision": "fp16"}, {"device": "cuda:99"}])
def test_the_device_is_checked_before_data_are_opened(config, changed, monkeypatch):
    monkeypatch.setattr(preparing, "open_splits", lambda *_: pytest.fail("the device comes first"))
    with pytest.raises(SetrError, match=r"fp16: CPUs compute|cuda:99.: this machine has"):
        train(with_train(config, **changed))


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)]
)
def test_a_signal_saves_and_exits_130(tmp_path, number, group):
    """To the process, or with its workers to the group, as a terminal and `timeout` send it."""
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "setr", "train", "demo", "--out", str(out)),
        *("--data.root", "scenes:20", "--data.workers", "2" if group else "0"),
        *("--train.steps", "100000", "--train.batch-size", "2", "--train.log-every", "1"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    (os.killpg if group else os.kill)(process.pid, number)
    if number == signal.SIGTERM:
        os.kill(process.pid, number)  # `timeout` sends both
    message = process.communicate(timeout=60)[1]
    assert process.returncode == INTERRUPTED, message
    assert "--resume" in message
    assert "Traceback" not in message
    state = newest_state(out / LAST)
    assert state is not None
    assert state.step >= 1


@pytest.mark.parametrize(("number", "ema"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.9)])
def test_a_signal_in_the_last_test_leaves_a_run_to_continue(tmp_path, monkeypatch, number, ema):
    """At once, with the weights of the last step; the test is then done when continued."""
    whole = train(tiny_config(tmp_path / "whole", ema=ema))
    config = tiny_config(tmp_path / "run", ema=ema)
    original = best.evaluate_split

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError("goes on")

    monkeypatch.setattr(best, "evaluate_split", interrupted)
    before = signal.getsignal(number)
    for resume in (False, True):
        with pytest.raises(SetrError) as caught:
            train(config, resume=resume)
        assert caught.value.code == INTERRUPTED
        steps = config.train.steps
        expected = f"stopped after step {steps}; continue with `setr train {config.out} --resume`"
        assert str(caught.value) == expected
        assert signal.getsignal(number) is before
    monkeypatch.setattr(best, "evaluate_split", original)
    metrics = train(config, resume=True)
    assert metrics["single_scale"]["iou"] == whole["single_scale"]["iou"]
    assert_same_weights(tmp_path / "whole", config)


@pytest.mark.parametrize("before", [False, True])
def test_a_signal_in_a_test_between_steps_saves_and_the_test_is_done_again(
    tmp_path, monkeypatch, before
):
    """Not after all images of the split; a signal before it ends the run without it."""
    whole = train(tiny_config(tmp_path / "whole", ema=0.5, eval_every=2))
    config = tiny_config(tmp_path / "run", ema=0.5, eval_every=2)
    original = best.evaluate_split

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("goes on")

    with monkeypatch.context() as patch:
        patch.setattr(best, "evaluate_split", interrupted)
        if before:
            stop_after(patch, 2)
        with pytest.raises(SetrError, match="stopped after step 2; continue") as caught:
            train(config)
    assert caught.value.code == INTERRUPTED
    assert best.evaluate_split is original
    metrics = train(config, resume=True)
    assert metrics["single_scale"]["iou"] == whole["single_scale"]["iou"]
    lines = [Path(tmp_path, name, "log.jsonl").read_text() for name in ("whole", "run")]
    seconds = [json.loads(x)["seconds"] for x in lines[1].splitlines()]
    assert 0 < seconds[0] <= seconds[-1] == max(seconds)
    tests = [[json.loads(x)["step"] for x in y.splitlines() if '"val"' in x] for y in lines]
    assert tests == [[2, 4], [2, 4]]
    assert_same_weights(tmp_path / "whole", config)


def test_an_interruption_in_the_last_step_ends_before_the_test(tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run")
    stop_after(monkeypatch, config.train.steps)
    with pytest.raises(SetrError, match=f"stopped after step {config.train.steps}; continue"):
        train(config)
    assert train(config, resume=True)["single_scale"]["miou"] is not None


@pytest.mark.parametrize("workers", [0, 2, -1])
def test_every_test_of_a_run_has_its_workers(tmp_path, monkeypatch, workers):
    original, asked = loader.Loader, []

    def recorded(*arguments, workers, **options):
        asked.append(workers)
        return original(*arguments, workers=workers, **options)

    monkeypatch.setattr(loader, "Loader", recorded)
    config = tiny_config(tmp_path / "run", steps=2, adjust_logits=True)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, workers=workers),
        eval=dataclasses.replace(config.eval, multi_scale=True),
    )
    train(config)
    chosen = 2 if workers < 0 else workers
    assert asked == [chosen] * 5  # training, last weights, search, adjusted ones, several scales
    written = (Path(config.out) / "config.yaml").read_text()
    assert f"workers: {workers}\n" in written  # another machine chooses anew


@pytest.mark.skipif(sys.platform != "linux", reason="a patch reaches forked processes alone")
def test_a_killed_loader_process_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(processes, "init_worker", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    words = "--data.root scenes:4 --data.workers 1 --train.steps 2 --train.batch-size 2"
    assert main(["train", "demo", *words.split(), "--out", str(tmp_path / "run")]) == FAILED
    errors = [line for line in capfd.readouterr().err.splitlines() if "loader process" in line]
    assert errors == [line for line in errors if line.startswith("setr: a data loader process")]
    assert len(errors) == 1


def test_resume_refuses_another_optimiser_before_it_trains(config, monkeypatch):
    train(config)
    other = dataclasses.replace(
        with_train(config, steps=6), optim=dataclasses.replace(config.optim, name="adamw")
    )
    monkeypatch.setattr(running, "build_model", lambda *_: pytest.fail("built"))
    with pytest.raises(SetrError, match=r"another optimiser: optim\.name 'adamw', not 'sgd'"):
        train(other, resume=True)


def test_an_average_asked_for_later_begins_at_the_weights(config, monkeypatch):
    figures = iter((0.1, 0.2))  # the average is better, and kept
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": next(figures)})
    train(config)
    longer = with_train(config, steps=6, ema=0.99)
    run = running.Run(longer, RunFolder(Path(config.out), resume=True))
    weights = run.model.state_dict()
    assert run.ema.state.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in run.ema.state.items())
    assert train(longer, resume=True)["single_scale"]["miou"] == 0.2
    averaged, last = from_pretrained(config.out)[0].state_dict(), final_state(Path(config.out))
    name = "decoder.classifier.weight"
    assert torch.equal(averaged[name], last[f"ema/{name}"])


@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "focal", "dice", "lovasz"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_loss_trains(config, monkeypatch, kind, dtype):
    monkeypatch.setattr(running, "autocast_dtype", lambda precision, device: dtype)
    monkeypatch.setattr(running, "Telemetry", lambda *_: None)  # slow where bf16 is emulated
    run = running.Run(with_train(config, loss=kind, steps=1), RunFolder(Path(config.out)))
    moving = [run.model.decoder.classifier.weight, run.model.encoder.vit.patch_embed.proj.weight]
    before = [weight.clone() for weight in moving]
    figures = run.train_step(*next(run.source.batches(0)))
    assert figures["loss"] > 0
    assert figures["gradient_norm"] > 0
    assert not any(map(torch.equal, before, moving))


def test_a_run_says_where_its_encoder_starts(config, capsys):
    line = "encoder: random weights; --model.pretrained TAG or FILE starts from trained ones"
    train(config)
    assert line in capsys.readouterr().err.splitlines()
    train(with_train(config, steps=5), resume=True)
    assert "random" not in capsys.readouterr().err
    model = dataclasses.replace(config.model, pretrained=config.out)
    train(dataclasses.replace(config, model=model), overwrite=True)
    said = capsys.readouterr().err
    assert f"encoder: weights of {config.out}: dialect setr: " in said
    assert "random" not in said


def test_a_tag_in_an_encoders_name_is_told_to_load_nothing(config, capsys):
    model = dataclasses.replace(config.model, encoder="vit_small_patch14_dinov2.lvd142m")
    announce(dataclasses.replace(config, model=model), images=9)
    said = capsys.readouterr().err
    assert "random weights; --model.pretrained lvd142m starts from those of its name" in said


def test_a_run_says_what_it_trains_where_and_how_long(config, capsys, monkeypatch):
    train(with_train(config, steps=6, batch_size=2, precision="fp32"))
    said = re.search(r"^training (.*)$", capsys.readouterr().err, re.MULTILINE)[1]
    total = sum(p.numel() for p in build_model(config, 9).parameters())
    H, W = config.data.crop_size
    images = len(open_dataset(config.data.root, "train"))
    assert said == (
        f"{total:,} parameters on cpu (threads: {torch.get_num_threads()}) in fp32: 6 steps of 2 "
        f"crops of {H}x{W}, {12 / images:.3g} passes over {images} images"
    )
    monkeypatch.setattr(running, "gpu_out_of_reach", lambda: "a GPU lies idle")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, freeze=-1))
    train(config, overwrite=True)
    said = capsys.readouterr().err
    assert "warning: a GPU lies idle" in said
    assert re.search(
        rf"^training [\d,]+ of {total:,} parameters \([\d.]+%\) on ", said, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("cuda", "seen", "devices", "said"),
    [
        (None, False, ["/dev/nvidia0"], r"torch .* is built without CUDA; install"),
        ("13.0", False, ["/dev/nvidia0"], r"cannot use; it may need a driver for CUDA 13\.0"),
        (None, False, [], r"^$"),
        ("13.0", True, ["/dev/nvidia0"], r"^$"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch, cuda, seen, devices, said):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(devices))
    assert re.search(said, distributed.gpu_out_of_reach())
    if devices and not seen:
        with pytest.raises(SetrError, match=said):
            distributed.device("cuda:7")


def test_weights_trained_on_other_pixels_are_named(monkeypatch, capsys):
    """timm's AugReg weights are of pixels from -1 to 1; SETR's checkpoints on top of them not."""
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    for given, dialect, notes in ((half, "timm", 0), ({}, "timm", 1), ({}, "mmseg", 0)):
        report = SimpleNamespace(dialect=dialect)
        monkeypatch.setattr(build, "load_encoder", lambda *_, report=report, **__: report)
        model = ModelConfig(name="setr_naive_nano", channels=8, pretrained="augreg_in21k", **given)
        build_model(Config(model=model), 3)
        said = capsys.readouterr().err
        options = "--model.mean 0.5 0.5 0.5 --model.std 0.5 0.5 0.5"
        assert said.count(options) == notes


def warnings_of(config: Config, capsys: pytest.CaptureFixture, part: str, **changes) -> list[str]:
    changed = dataclasses.replace(getattr(config, part), **changes)
    announce(dataclasses.replace(config, **{part: changed}), 12)
    return [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]


def test_settings_that_cannot_do_their_work_are_named(config, capsys):
    assert warnings_of(config, capsys, "model") == []
    for name, value in (("freeze", -1), ("freeze", 2), ("lora_rank", 4)):
        (line,) = warnings_of(config, capsys, "model", **{name: value})
        assert line == f"warning: model.{name} {value} freezes random weights"
        assert warnings_of(config, capsys, "model", **{name: value}, pretrained="lvd142m") == []
    assert warnings_of(config, capsys, "optim", warmup_steps=3) == []
    (line,) = warnings_of(config, capsys, "optim", warmup_steps=4)
    assert line.endswith("warmup_steps 4 of 4: the learning rate never reaches optim.lr 0.01")


def test_the_moving_average_is_what_is_tested_and_saved(config, monkeypatch):
    tested = []
    original = best.evaluate_split

    def watched(model, *arguments, **options):
        tested.append({k: v.clone() for k, v in model.state_dict().items()})
        return original(model, *arguments, **options)

    monkeypatch.setattr(best, "evaluate_split", watched)
    train(with_train(config, ema=0.5))
    state = final_state(Path(config.out))
    saved = from_pretrained(config.out)[0].state_dict()
    name = "decoder.classifier.weight"
    assert torch.equal(saved[name], state[f"ema/{name}"])
    assert torch.equal(tested[-1][name], state[f"ema/{name}"])
    assert not torch.equal(saved[name], state[f"model/{name}"])


def test_the_best_weights_are_kept_not_the_last(config, monkeypatch):
    mious = iter([0.2, 0.5, 0.3, 0.4])
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": next(mious)})
    metrics = train(with_train(config, eval_every=1))
    assert metrics["single_scale"]["miou"] == 0.5
    assert from_pretrained(config.out)[1].metrics == {"val mIoU": 0.5, "step": 2}


@pytest.mark.parametrize("norm", ["valid", "all"])
@pytest.mark.parametrize("weights", ["none", "median_frequency", "road=0,pole=3"])
def test_a_steps_loss_is_the_mean_its_settings_ask_for(config, norm, weights):
    """Class weights, the divisor and the factor of the auxiliary losses reach the loss."""
    config = with_train(config, loss_norm=norm, class_weights=weights, aux_weight=0.25)
    run = running.Run(config, RunFolder(Path(config.out)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(9, (2, 64, 64), dtype=torch.uint8, generator=generator)
    masks[0, :20] = 255
    run.model.train()
    output = run.model(run.source.inputs(images), with_aux=True)
    wide = torch.nn.functional.interpolate(output.logits, (64, 64), mode="bilinear")
    assert (run.updates.weight is None) == (weights == "none")
    total = torch.nn.functional.cross_entropy(
        wide, masks.long(), weight=run.updates.weight, ignore_index=255, reduction="sum"
    )
    counted = masks[masks != 255].long()
    divisor = (
        masks.numel()
        if norm == "all"
        else (len(counted) if run.updates.weight is None else run.updates.weight[counted].sum())
    )
    parts = run.train_step(images, masks)
    assert parts["main"] == pytest.approx((total / divisor).item(), rel=1e-4)
    aux = sum(value for name, value in parts.items() if name.startswith("aux_"))
    assert parts["loss"] == pytest.approx(parts["main"] + 0.25 * aux, rel=1e-5)


def test_images_that_a_test_had_to_leave_out_are_told(tmp_path, monkeypatch, capsys):
    """As a file that vanished since the check; its mIoU is then of other images than the last."""
    evaluate, problem = best.evaluate_split, {"failed": ["x.png: no such file", "y.png: empty"]}
    monkeypatch.setattr(best, "evaluate_split", lambda *a, **o: evaluate(*a, **o) | problem)
    train(tiny_config(tmp_path / "run", steps=1))
    said = "images of val are in no figure; the first: x.png: no such file"
    assert f"warning: 2 of 2 {said}" in capsys.readouterr().err
