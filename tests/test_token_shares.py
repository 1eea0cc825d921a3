"""`setr merge-tokens`: which share is chosen, what is written, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from setr.captured_attention import catch_attention
from setr.cli import main
from setr.data import scenes
from setr.errors import FAILED, OK, USAGE
from setr.export import export
from setr.hub import from_pretrained, save_pretrained
from setr.model_info import ModelInfo
from setr.protocols import Protocol
from setr.token_shares import Tried, fastest
from tests.conftest import tiny_model

INFO = ModelInfo(labels=scenes.LABELS, protocol=Protocol(window=(40, 40), stride=(24, 24)))
K = len(scenes.CLASSES)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "model", tiny_model("naive", K), INFO)
    return tmp_path / "model"


def tried(share: float, miou: float) -> Tried:
    return Tried(share, miou, 1.0, 1.0, {})


def test_the_largest_share_within_the_drop_is_chosen():
    rows = [tried(0, 0.70), tried(0.3, 0.71), tried(0.5, 0.696), tried(0.7, 0.69)]
    assert fastest(rows, 0.005) == rows[2]
    assert fastest(rows, 0.02) == rows[3]
    assert fastest(rows[:1] + rows[3:], 0.005) is None


def test_it_writes_a_model_that_merges_tokens(model_dir, tmp_path, capsys):
    out = tmp_path / "fast"
    words = [str(model_dir), "scenes:8", "-o", str(out), "--count", "2", "--workers", "0"]
    assert main(["merge-tokens", *words, "--shares", "0.5", "1", "--max-drop", "100"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0%", "50%", "100%"]
    gflops = [float(line.split()[-2]) for line in lines[1:4]]
    assert lines[-1] == f"100% of the groups merged; written to {out}"
    assert gflops == sorted(gflops, reverse=True)
    network, info = from_pretrained(out)
    assert network.arguments["merge_tokens"] == 1.0
    assert info.metrics["val mIoU"] == pytest.approx(float(lines[3].split()[1]) / 100, abs=1e-4)
    images, whole = torch.randn(1, 3, 40, 40), from_pretrained(model_dir)[0].eval()
    fast = network.eval()(images)
    assert not torch.allclose(whole(images), fast)
    whole.set_merge_tokens(1.0)
    assert torch.equal(whole(images), fast)


def test_nothing_is_written_if_every_share_costs_too_much(model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("setr.token_shares.fastest", lambda *_: None)
    words = [str(model_dir), "scenes:8", "-o", str(tmp_path / "fast"), "--count", "2"]
    assert main(["merge-tokens", *words, "--workers", "0", "--shares", "0.5"]) == FAILED
    assert "every share lowers the mIoU by more than 0.5 points" in capsys.readouterr().err
    assert not (tmp_path / "fast").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--shares", "0"], "--shares 0: give shares above 0, up to 1"),
        (["--shares", "0.5", "1.5"], "--shares 0.5 1.5: give shares above 0"),
        (["--max-drop", "-1"], "--max-drop -1"),
        (["--count", "0"], "--count 0: give at least 1"),
    ],
)
def test_other_values_are_refused(model_dir, tmp_path, capsys, options, why):
    words = [str(model_dir), "scenes:8", "-o", str(tmp_path / "fast"), *options]
    assert main(["merge-tokens", *words]) == USAGE
    assert why in capsys.readouterr().err


def test_a_share_that_merges_nothing_is_refused(model_dir, tmp_path, capsys):
    out = tmp_path / "fast"
    words = [str(model_dir), "scenes:8", "-o", str(out), "--shares", "1", "0.05"]  # of 6 groups
    assert main(["merge-tokens", *words]) == USAGE
    told = "--shares 0.05: less than a group of 2x2 patches of 40x40 pixels; give a larger share"
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_an_encoder_that_needs_the_whole_grid_is_refused_first(tmp_path, capsys):
    encoder = {"encoder": "beit_base_patch16_224", "encoder_args": {"depth": 2, "embed_dim": 24}}
    model = tiny_model("naive", K, **{**encoder, "taps": (1, 2)})
    save_pretrained(tmp_path / "model", model, INFO)
    words = [str(tmp_path / "model"), "no such data", "-o", str(tmp_path / "fast")]
    assert main(["merge-tokens", *words]) == USAGE
    assert "needs the whole grid of patches" in capsys.readouterr().err


def test_attention_is_shown_for_every_patch(model_dir):
    network, _ = from_pretrained(model_dir)
    images = torch.randn(1, 3, 40, 40)
    whole = catch_attention(network, images, [2])[2]
    network.set_merge_tokens(0.5)
    merged = catch_attention(network, images, [2])[2]
    assert torch.equal(whole.query, merged.query)
    assert network.encoder.merge_tokens == 0.5


@pytest.mark.parametrize("decoder", ["naive", "mla"])
def test_an_exported_file_merges_the_same_tokens(tmp_path, decoder):
    torch.manual_seed(0)
    model = tiny_model(decoder, K, merge_tokens=0.5).eval()
    report = export(model, INFO, tmp_path / "m.onnx", format="onnx")
    assert max(report["difference"].values()) < 1e-5
