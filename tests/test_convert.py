"""`setr convert` and `setr models` on the command line."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import save_file

import setr
from setr.cli import main
from setr.errors import OK, USAGE
from setr.hub import from_pretrained, save_pretrained
from setr.labels import Labels, known_labels
from setr.model import create_model
from setr.model_info import ModelInfo
from setr.weight_files.foreign import convert_foreign
from tests.conftest import tiny_model


def last_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", ["official/pup", "mmseg/mla_ade_patchbias"])
def test_foreign_checkpoint_becomes_a_model_directory(shared, tmp_path, capsys, name):
    source = shared / f"parity/{name}.pth"
    out = tmp_path / "model"
    assert main(["convert", str(source), "-o", str(out), "--num-heads", "4", "--json"]) == OK
    report = json.loads(capsys.readouterr().out)
    assert report["dialect"] == name.split("/")[0]
    assert report["encoder_share"] == 1
    assert not report["missing"]
    config = json.loads((out / "config.json").read_text())
    assert config["labels"]["classes"][0] == "c0"
    assert config["crop_size"] == [64, 64]
    assert config["model"]["pos_interp"] == "bilinear"
    assert str(shared) not in (out / "README.md").read_text()
    images = torch.randn(1, 3, 64, 64)
    direct = setr.load(source, num_heads=4, device="cpu").model
    with torch.inference_mode():
        assert torch.equal(setr.load(out, device="cpu").model(images), direct(images))


def test_existing_model_is_kept(shared, tmp_path, capsys):
    source, out = str(shared / "parity/official/naive.pth"), str(tmp_path / "m")
    assert main(["convert", source, "-o", out, "--num-heads", "4"]) == OK
    capsys.readouterr()
    assert main(["convert", source, "-o", out, "--num-heads", "4"]) == USAGE
    assert "add --overwrite" in last_line(capsys)
    assert main(["convert", source, "-o", out, "--num-heads", "2", "--overwrite"]) == OK
    model, _ = from_pretrained(out)
    assert model.encoder.vit.blocks[0].attn.num_heads == 2


def test_encoder_goes_into_a_named_model(tmp_path, capsys):
    source = tiny_model("pup", encoder_args={}, taps=(1, 2), aux_taps=())
    path = tmp_path / "vit.safetensors"
    save_file(source.encoder.vit.state_dict(), path)
    command = ["convert", str(path), "-o", str(tmp_path / "m"), "--model", "setr_naive_nano"]
    assert main(command) == USAGE
    assert "--labels NAME or --num-classes K" in last_line(capsys)
    command += ["--num-classes", "3", "--img-size", "32", "32"]
    assert main(command) == USAGE  # two of six blocks
    assert "--partial" in last_line(capsys)
    assert main([*command, "--partial"]) == OK
    assert "missing" in capsys.readouterr().out
    model, info = from_pretrained(tmp_path / "m")
    assert torch.equal(model.encoder.vit.pos_embed, source.encoder.vit.pos_embed)
    assert info.pretrained == "vit.safetensors"


def test_a_model_directory_gives_its_weights_to_a_named_model(tmp_path, capsys):
    source = create_model("setr_pup_nano", num_classes=3, img_size=32)
    folder, out = tmp_path / "trained", tmp_path / "m"
    save_pretrained(folder, source, ModelInfo(labels=Labels(("a", "b", "c"))))
    command = ["convert", str(folder), "-o", str(out)]
    assert main(command) == USAGE
    assert "is a model directory, which eval, predict and export take as it is" in last_line(capsys)
    command += ["--model", "setr_pup_nano", "--num-classes", "5", "--img-size", "32", "32"]
    assert main(command) == USAGE
    assert "is for 3 classes, the model has 5" in last_line(capsys)
    assert main([*command, "--new-head"]) == OK
    model, _ = from_pretrained(out)
    assert model.num_classes == 5
    assert torch.equal(model.encoder.vit.pos_embed, source.encoder.vit.pos_embed)
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "with --model also a model directory" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.pth"], "no such weight file"),
        (["nothing.pth", "--model", "setr_nope", "--num-classes", "2"], "is unknown; nearest"),
        (
            ["nothing.pth", "--labels", "nope"],
            "nope: No such file or directory; known maps: ade20k",
        ),
        (
            ["nothing.pth", "--model", "setr_pup_nano", "--num-heads", "4"],
            "--num-heads 4: does nothing with --model setr_pup_nano, which has its own; leave",
        ),
        (["nothing.pth", "--num-classes", "3"], "--num-classes 3: does nothing without --model"),
        (["nothing.pth", "--pos-interp", "bilinear"], "--pos-interp bilinear: does nothing"),
        (["nothing.pth", "--partial"], "--partial: does nothing without --model"),
        (["nothing.pth", "--new-head"], "--new-head: does nothing without --model"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, words):
    assert main(["convert", *arguments, "-o", str(tmp_path / "m")]) == USAGE
    assert words in last_line(capsys)
    assert not (tmp_path / "m").exists()


def test_settings_of_another_toolkit_are_no_checkpoint(tmp_path, capsys):
    config = tmp_path / "setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py"
    config.write_text("_base_ = ['../_base_/models/setr_pup.py']\n")
    assert main(["convert", str(config), "-o", str(tmp_path / "m")]) == USAGE
    assert "a configuration file, not weights; give only the checkpoint (.pth" in last_line(capsys)


def test_models_prints_figures(capsys):
    assert main(["models", "setr_*_tiny", "--size", "64", "--classes", "3", "--json"]) == OK
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == ["setr_naive_tiny", "setr_pup_tiny", "setr_mla_tiny"]
    assert all(r["gflops"] > 0 and r["licence"] == "apache-2.0" for r in rows)
    assert main(["models", "setr_naive_tiny"]) == OK
    assert "6.04" in capsys.readouterr().out


def test_models_compares_with_table_2(capsys):
    assert main(["models", "*_base", "--table2"]) == OK
    out = capsys.readouterr().out
    assert "97,641,180" in out
    assert "no configuration was published" in out


def test_models_lists_encoders(capsys):
    assert main(["models", "*dinov3*", "--encoders"]) == OK
    assert "vit_small_patch16_dinov3" in capsys.readouterr().out.splitlines()


def test_models_refusals(capsys):
    assert main(["models", "nope*"]) == USAGE
    assert "no model matches 'nope*'" in last_line(capsys)
    assert main(["models", "--size", "0"]) == USAGE
    assert "--size" in last_line(capsys)


def test_the_card_has_the_command(tmp_path, capsys, monkeypatch):
    source, out = tmp_path / "my runs" / "best of all", tmp_path / "a copy"
    labels = Labels(("a", "b", "c"))
    save_pretrained(source, create_model("setr_pup_nano", num_classes=3), ModelInfo(labels=labels))
    options = ["--model=setr_pup_nano", "--num-classes", "3", "--img-size", "64", "96"]
    options += ["--odd-sizes", "squeeze"]
    assert main(["convert", str(source), f"--out={out}/", *options]) == OK
    model, _ = from_pretrained(out)
    assert model.odd_sizes == "squeeze"
    command = re.search(r"```bash\n(.+)\n```", (out / "README.md").read_text())[1]
    assert str(tmp_path) not in command
    words = ["setr", "convert", "best of all", "-o", "a copy", "--model", "setr_pup_nano"]
    words += ["--img-size", "64", "96", "--num-classes", "3", "--odd-sizes", "squeeze"]
    assert shlex.split(command) == words
    monkeypatch.chdir(source.parent)
    assert main(words[1:]) == OK


def test_pascal_context_is_named_in_the_order_of_its_masks(tmp_path):
    """SETR's authors list the classes in FCN's order; their models were trained on other ids."""
    known = known_labels("pascal_context")
    order = known_labels("pascal_context:fcn").label_map
    listed = [known.classes[order[i]] for i in range(60)]
    assert listed[:4] == ["background", "aeroplane", "bicycle", "bird"]
    model = create_model("setr_naive_nano", num_classes=60, img_size=16, aux=False)
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("encoder.vit.", "backbone."),
            ("decoder.convs.0.0.", "decode_head.conv_0."),
            ("decoder.convs.0.1.", "decode_head.syncbn_fc_0."),
            ("decoder.classifier.", "decode_head.conv_1."),
            ("decoder.norm.", "decode_head.norm."),
        ):
            name = name.replace(ours, theirs)
        state[name] = value
    for classes, expected in ((listed, known.classes), ([*listed[:-1], "x"], (*listed[:-1], "x"))):
        torch.save({"state_dict": state, "meta": {"CLASSES": tuple(classes)}}, tmp_path / "a.pth")
        _, info, _ = convert_foreign(tmp_path / "a.pth", num_heads=4)
        assert info.labels.classes == expected
    assert known_labels("pascal_context").classes != tuple(listed)
