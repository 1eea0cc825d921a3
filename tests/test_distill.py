"""Distillation: the distance from a teacher's predictions, and training with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import setr.estimate as estimating
from setr.cli import main
from setr.config import Config, DistillConfig
from setr.data import scenes
from setr.engine import train
from setr.errors import USAGE, SetrError
from setr.estimate import estimate
from setr.hub import from_pretrained, save_pretrained
from setr.kernels import row_blocks
from setr.kernels.divergence import upsample_divergence
from setr.labels import Labels
from setr.model_info import ModelInfo
from setr.training.run import Run
from setr.training.runfolder import RunFolder
from tests.conftest import tiny_config, tiny_model, write_scene_folders
from tests.test_step import assert_same_weights, stopped_and_resumed

CPU = torch.device("cpu")
CLASSES = tuple(scenes.CLASSES)
LABELS = Labels(CLASSES)


def taught(config: Config, teacher: Path, **distill: float) -> Config:
    return dataclasses.replace(config, distill=DistillConfig(teacher=str(teacher), **distill))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A model with another decoder, patch size and normalisation than the student."""
    torch.manual_seed(3)
    model = tiny_model("pup", num_classes=len(CLASSES))
    info = ModelInfo(labels=LABELS, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    save_pretrained(tmp_path / "teacher", model, info)
    return tmp_path / "teacher"


# --- the distance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_distance_is_kl_of_resized_logits(monkeypatch, temperature):
    """Against PyTorch's own functions, with several blocks, two resolutions, and a crop."""
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 1 << 12)
    torch.manual_seed(0)
    student = torch.randn(2, 7, 5, 9, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 7, 20, 36)
    target = torch.full((2, 37, 70), 255, dtype=torch.uint8)  # ignored pixels count, too
    sizes = (40, 72), (42, 70)

    wanted, found = (
        F.interpolate(x, size=size, mode="bilinear")[..., :37, :70] / temperature
        for x, size in zip((teacher.double(), student), sizes[::-1], strict=True)
    )
    expected = temperature**2 * F.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), reduction="sum", log_target=True
    )
    (gradient,) = torch.autograd.grad(expected, student)
    value = upsample_divergence(student, teacher, target, *sizes, temperature=temperature)
    (own,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(own, gradient)


def test_equal_predictions_have_no_distance():
    logits = torch.randn(1, 4, 6, 6, requires_grad=True)
    target = torch.zeros(1, 24, 24, dtype=torch.uint8)
    value = upsample_divergence(logits, logits.detach(), target, (24, 24), (24, 24))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-4)
    assert logits.grad.abs().max() < 1e-5


# --- training -------------------------------------------------------------------------------------


def test_a_student_with_the_teachers_weights_has_nothing_to_learn_from_it(tmp_path):
    first = tiny_config(tmp_path / "first", steps=1)
    train(first)
    config = taught(tiny_config(tmp_path / "second", steps=1), tmp_path / "first")
    run = Run(config, RunFolder(Path(config.out)))
    run.model.load_state_dict(from_pretrained(tmp_path / "first")[0].state_dict(), strict=False)
    run.model.eval()
    run.model.train = lambda mode=True: run.model  # batch norm as in the teacher
    images, masks = next(iter(run.source.batches(0)))
    assert run.train_step(images, masks)["distill"] == pytest.approx(0, abs=1e-5)


def test_the_teacher_sees_its_own_normalisation(tmp_path, teacher):
    config = taught(tiny_config(tmp_path / "run"), teacher)
    run = Run(config, RunFolder(Path(config.out)))
    images, masks = next(iter(run.source.batches(0)))
    model, info = from_pretrained(teacher)
    with torch.no_grad():
        pixels = images.permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (info.mean, info.std))
        wanted = model((pixels - mean) / std).log_softmax(1)
        run.model.train()
        state = {k: v.clone() for k, v in run.model.state_dict().items()}
        found = run.model(run.source.inputs(images)).log_softmax(1)
        run.model.load_state_dict(state)
        expected = (wanted.exp() * (wanted - found)).sum() / masks.numel()
    assert run.train_step(images, masks)["distill"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_student_comes_closer_to_its_teacher(tmp_path, teacher):
    data = write_scene_folders(tmp_path / "data", {"train": 4, "val": 1})
    config = taught(tiny_config(tmp_path / "run", steps=30), teacher, weight=4.0)
    train(dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(data))))
    lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    distances = [line["distill"] for line in lines if "loss" in line]
    assert sum(distances[-5:]) < 0.7 * sum(distances[:5])


def test_micro_batches_add_up(tmp_path, teacher):
    images = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8)
    masks = torch.randint(9, (4, 64, 64), dtype=torch.uint8)
    values = []
    for accumulate in (1, 2):
        config = tiny_config(tmp_path / str(accumulate), batch_size=4, accumulate=accumulate)
        run = Run(taught(config, teacher, temperature=2.0), RunFolder(Path(config.out)))
        run.model.eval()
        run.model.train = lambda mode=True: None
        values.append(run.train_step(images, masks))
    assert values[0]["distill"] == pytest.approx(values[1]["distill"], rel=1e-5)
    weighted = values[0]["main"] + values[0]["distill"]
    weighted += 0.4 * sum(v for k, v in values[0].items() if k.startswith("aux_"))
    assert values[0]["loss"] == pytest.approx(weighted, rel=1e-5)


def test_resume_equals_uninterrupted(tmp_path, teacher, monkeypatch):
    whole, parts = (taught(tiny_config(tmp_path / n, steps=3), teacher) for n in ("a", "b"))
    train(whole)
    stopped_and_resumed(parts, monkeypatch, at=2)
    assert_same_weights(whole, parts)


def test_another_teacher_is_noted_on_resume(tmp_path, teacher, capsys):
    config = taught(tiny_config(tmp_path / "run", steps=2), teacher)
    train(config)
    model, info = from_pretrained(teacher)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_pretrained(tmp_path / "moved", model, info)
    train(taught(tiny_config(tmp_path / "run", steps=3), tmp_path / "moved"), resume=True)
    assert "distill.weights" in capsys.readouterr().err


def test_the_estimate_reads_the_teacher_once(tmp_path, teacher, monkeypatch):
    read = []
    monkeypatch.setattr(
        estimating, "from_pretrained", lambda source: read.append(source) or from_pretrained(source)
    )
    estimating._teacher_arguments.cache_clear()
    config = taught(tiny_config(tmp_path), teacher)
    assert estimating.largest_batch(config, 9, CPU, room=10**10, at_most=12)[0] == 12
    assert len(read) == 1


def test_the_estimate_knows_the_teacher(tmp_path, teacher):
    config = tiny_config(tmp_path / "run")
    alone = estimate(config, 9, CPU)
    both = estimate(taught(config, teacher), 9, CPU)
    weights = sum(p.numel() * p.element_size() for p in from_pretrained(teacher)[0].parameters())
    assert both.parameters - alone.parameters >= weights
    assert both.optimizer == alone.optimizer
    assert both.gradients == alone.gradients
    assert both.logits > alone.logits


# --- what does not fit ----------------------------------------------------------------------------


def refusal(capsys, *options: str) -> str:
    arguments = ["train", "demo", "--data.root", "scenes:8", *options]
    assert main(arguments) == USAGE
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("setr: ")]
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distill.teacher", "nowhere"], "nowhere: no such model directory"),
        (["--distill.weight", "0"], "distill.weight 0.0: give a positive number"),
        (["--distill.temperature", "-1"], "distill.temperature -1.0: give a positive number"),
        (["--distill.weight", "4"], "distill.weight 4.0: has no effect without --distill.teacher"),
        (
            ["--distill.teacher", "x", "--model.name", "eomt_nano", "--model.channels", "None"],
            "EoMT learns masks",
        ),
        (
            ["--distill.teacher", "x", "--model.freeze", "-1", "--train.cache-features", "once"],
            "a teacher needs the images",
        ),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, capsys, options, message):
    assert message in refusal(capsys, *options, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", *CLASSES[1:]), f"class 0 is 'a', the data's '{CLASSES[0]}'"),
        (CLASSES[:-1], f"has {len(CLASSES) - 1} classes, the data"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(tmp_path, classes, message):
    info = ModelInfo(labels=Labels(classes))
    save_pretrained(tmp_path / "other", tiny_model("pup", num_classes=len(classes)), info)
    with pytest.raises(SetrError, match=message) as caught:
        train(taught(tiny_config(tmp_path / "run"), tmp_path / "other"))
    assert caught.value.code == USAGE
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_bands_is_refused(tmp_path):
    from setr.bands import Bands

    model = tiny_model("pup", num_classes=len(CLASSES), in_chans=4)
    info = ModelInfo(labels=LABELS, mean=(0.5,) * 4, std=(0.2,) * 4, bands=Bands((1, 2, 3, 4)))
    save_pretrained(tmp_path / "other", model, info)
    with pytest.raises(SetrError, match=r"reads .*, the data have RGB"):
        train(taught(tiny_config(tmp_path / "run"), tmp_path / "other"))
