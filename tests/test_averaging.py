"""Averages of models: exact means, and refusals."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from setr.bands import Bands
from setr.cli import main
from setr.data import scenes
from setr.engine import train
from setr.errors import UsageError
from setr.hub import from_pretrained, save_pretrained
from setr.model_info import ModelInfo
from setr.protocols import Protocol
from setr.weight_files.averaging import average
from tests.conftest import tiny_config, tiny_model

K = len(scenes.LABELS.classes)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three models of one architecture that differ in every tensor, running figures included."""
    folders = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = tiny_model(num_classes=K)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) + name.endswith("running_var"))
        info = ModelInfo(scenes.LABELS, metrics={"val mIoU": 0.5}, command="setr train",
                         licence=("mit", "apache-2.0", "mit")[seed], data="photos",
                         base_model=f"owner/{seed}")  # fmt: skip
        folders.append(tmp_path / f"run{seed}")
        save_pretrained(folders[-1], model, replace(info, protocol=Protocol(short_side=64 + seed)))
    return folders


def test_every_tensor_is_the_mean(runs, tmp_path, capsys):
    out = tmp_path / "mean"
    assert main(["average", *map(str, runs), "-o", str(out)]) == 0
    assert "setr eval" in capsys.readouterr().out
    found, info = from_pretrained(out)
    states = [from_pretrained(run)[0].state_dict() for run in runs]
    assert any("running_var" in name for name in states[0])
    for name, tensor in found.state_dict().items():
        mean = sum(s[name].double() for s in states) / 3
        assert torch.equal(tensor, mean.to(tensor.dtype)), name
    assert info.protocol.short_side == 64
    assert info.metrics == {}
    assert info.licence == "mit; apache-2.0"
    assert (info.data, info.base_model) == ("photos", None)  # that of the first is not that of all
    assert info.command.startswith("setr average")


def test_the_same_command_after_one_that_was_killed(runs, tmp_path):
    left = tmp_path / "mean" / ".saving-killed"
    left.mkdir(parents=True)
    for name in (".lock", "model.safetensors"):
        (left / name).write_bytes(b"half")
    assert main(["average", *map(str, runs), "-o", str(tmp_path / "mean")]) == 0
    assert from_pretrained(tmp_path / "mean")
    if os.name == "posix":
        assert not left.exists()


def test_a_pattern_names_the_models(runs, tmp_path):
    pattern = str(runs[0].parent / "*")
    assert main(["average", pattern, "-o", str(tmp_path / "mean")]) == 0
    mean, _ = average(runs)
    found = from_pretrained(tmp_path / "mean")[0].state_dict()
    assert all(torch.equal(v, found[k]) for k, v in mean.state_dict().items())


def test_a_model_averaged_with_its_copies_is_itself(runs, tmp_path):
    copies = [shutil.copytree(runs[0], tmp_path / name) for name in ("copy", "another")]
    model, _ = average([runs[0], *copies])
    same = from_pretrained(runs[0])[0].state_dict()
    assert all(torch.equal(v, same[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_stochastic_depth_makes_no_other_architecture(runs, tmp_path):
    model = tiny_model(num_classes=K)
    arguments = {**model.arguments["encoder_args"], "drop_path_rate": 0.1}
    save_pretrained(tmp_path / "deep", tiny_model(num_classes=K, encoder_args=arguments),
                    ModelInfo(scenes.LABELS))  # fmt: skip
    assert average([runs[0], tmp_path / "deep"])[0].arguments == model.arguments


def test_runs_that_share_the_first_weights_average_without_a_warning(tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed, first in zip(folders, (0, 1, 1), (None, 0, None), strict=True):
        train(tiny_config(folder, steps=1, eval_every=1, seed=seed, init_seed=first))
    capsys.readouterr()
    average(folders[:2])
    assert capsys.readouterr().err == ""
    average(folders)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"warning: {folders[2]}: began with another encoder and decoder than {folders[0]}" in line
    )
    assert "train.init_seed" in line


def test_what_does_not_average_is_refused_in_a_line(runs, tmp_path, capsys):
    other = tmp_path / "other"
    save_pretrained(other, tiny_model(num_classes=K, channels=8), ModelInfo(scenes.LABELS))
    with pytest.raises(UsageError, match="not the same aux_args, decoder_args"):
        average([runs[0], other])
    for number, change in enumerate(
        ({"mean": (0.0,) * 3}, {"std": (1.0,) * 3}, {"bands": Bands((3, 2, 1))})
    ):
        read = tmp_path / f"read otherwise {number}"
        save_pretrained(read, tiny_model(num_classes=K), ModelInfo(scenes.LABELS, **change))
        with pytest.raises(UsageError, match="other classes, label map, bands or normalisation"):
            average([runs[0], read])
    (tmp_path / "link").symlink_to(runs[0])
    for same in (runs[0], f"{runs[0]}/", tmp_path / "link"):
        with pytest.raises(UsageError, match="names a model twice; give each model once"):
            average([*runs, same])
    out = tmp_path / "out"
    assert main(["average", str(runs[0]), "-o", str(out)]) == 2
    assert main(["average", str(runs[0]), str(tmp_path / "none"), "-o", str(out)]) == 2
    assert main(["average", *map(str, runs), "-o", str(runs[0])]) == 2
    (tmp_path / "file").write_text("somebody's notes")
    with pytest.raises(UsageError, match="file: is a file; give a model directory"):
        average([runs[0], tmp_path / "file"])
    assert main(["average", *map(str, runs), "-o", str(tmp_path / "file")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "file: exists; choose another folder with -o" in errors[3]
    assert not out.exists()


def test_a_folder_whose_name_is_no_text(runs, tmp_path):
    out = os.fsdecode(bytes(tmp_path / "a") + b"\xff")
    assert main(["average", *map(str, runs), "-o", out]) == 0
    assert "a?" in Path(out, "README.md").read_text(encoding="utf-8")


def test_models_of_other_classes_do_not_average(runs, tmp_path):
    names = ("mountain", *scenes.LABELS.classes[1:])
    other = replace(scenes.LABELS, classes=names)
    save_pretrained(tmp_path / "named", tiny_model(num_classes=K), ModelInfo(other))
    with pytest.raises(UsageError, match="other classes"):
        average([runs[0], tmp_path / "named"])
