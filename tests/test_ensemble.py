"""Ensembles: exact means of probabilities, in every way of predicting, and refusals."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import setr
from setr.bands import Bands
from setr.cli import main
from setr.data import scenes
from setr.ensemble import Ensemble
from setr.errors import USAGE, SetrError
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.inference import NormalizedImages, mask_blocks
from setr.kernels import recorded as recording
from setr.model_info import ModelInfo
from setr.model_sources import name_of, sources_of
from setr.protocols import Protocol
from tests.conftest import tiny_model

K = len(scenes.LABELS.classes)
OWN = ModelInfo(scenes.LABELS)
OTHERS = replace(OWN, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2), licence="mit")


def member(folder: Path, seed: int, info: ModelInfo, decoder: str = "pup", **changes: Any) -> Path:
    """A saved model whose predictions differ from place to place."""
    torch.manual_seed(seed)
    model = tiny_model(decoder, num_classes=info.labels and K, **changes)
    for module in (model.neck, model.decoder):
        for weights in module.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=0.2)
    save_pretrained(folder, model, info)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Three models: two alike, and one with another decoder and normalisation."""
    root = tmp_path_factory.mktemp("runs")
    return [
        member(root / "fold0", 0, replace(OWN, crop_size=(48, 48), licence="apache-2.0")),
        member(root / "fold1", 1, OWN),
        member(root / "other", 2, OTHERS, "mla"),
    ]


def image(height: int = 40, width: int = 56) -> np.ndarray:
    return scenes.draw("ensemble", 0, size=max(height, width))[0][:height, :width]


@pytest.mark.parametrize(
    "options",
    [{}, {"scales": (0.75, 1.0), "flip": True}, {"window": 24}],
    ids=["whole", "scales and flip", "windows"],
)
def test_probabilities_are_the_mean_of_the_members(runs, options):
    found = setr.load(runs, precision="fp32", **options).predict(image())
    single = [setr.load(run, precision="fp32", **options).predict(image()) for run in runs]
    mean = np.mean([result.scores.astype(np.float64) for result in single], axis=0)
    assert np.abs(found.scores - mean).max() < 2e-6
    assert np.abs(found.confidence - mean.max(axis=0)).max() < 2e-6
    assert (found.mask == mean.argmax(axis=0)).mean() > 0.999
    for result in single:  # none of them alone decides
        assert (found.mask != result.mask).mean() > 0.02


def test_a_strip_of_a_raster_has_the_same_classes_as_the_whole(runs):
    predictor = setr.load(runs, precision="fp32", window=24)
    x = NormalizedImages(torch.from_numpy(image()[None]), predictor.info.mean, predictor.info.std)
    with predictor.computing():
        strips = [
            torch.cat([ids for ids, _ in mask_blocks(
                predictor.passes, x, predictor.raster_protocol, columns=columns)], dim=1)
            for columns in ((0, 30), (30, 56))
        ]  # fmt: skip
    whole = predictor.predict(image()).mask
    assert np.array_equal(torch.cat(strips, dim=2)[0].numpy(), whole)


def test_settings_are_those_of_the_first_and_licences_of_all(runs):
    predictor = setr.load(runs)
    assert predictor.info.crop_size == (48, 48)
    assert (predictor.info.mean, predictor.info.metrics) == (OWN.mean, {})
    assert predictor.info.licence == "apache-2.0; mit"
    assert isinstance(predictor.model, Ensemble)
    assert [type(m).__name__ for m in predictor.model.members] == ["SETR", "SETR", "_Renormalised"]


def test_evaluation_counts_the_masks_that_prediction_gives(runs, tmp_path, capsys):
    joined = ",".join(map(str, runs))
    figures = setr.evaluate(joined, "scenes:3", precision="fp32", detailed=False)
    predictor = setr.load(joined, precision="fp32")
    dataset = setr.open_dataset("scenes:3", "val")
    counts = np.zeros((K, K), np.int64)
    for index in range(len(dataset)):
        sample = dataset.load(index)
        counted = sample.mask < K
        pairs = K * sample.mask[counted].astype(int) + predictor.predict(sample.image).mask[counted]
        counts += np.bincount(pairs, minlength=K * K).reshape(K, K)
    accuracy = np.trace(counts) / counts.sum()
    assert figures["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert main(["eval", joined, "scenes:3", "--compare", str(runs[0]), "--json",
                 "-o", str(tmp_path / "out"), "--no-detailed"]) == 0  # fmt: skip
    assert "fold0" in capsys.readouterr().out


def test_results_are_written_again_if_one_member_changes(runs, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(image()))
    second = member(tmp_path / "second", 5, OWN)
    command = ["predict", f"{runs[0]},{second}", str(photo), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    before = (tmp_path / "out/photo.png").read_bytes()
    capsys.readouterr()
    assert main(command) == 0
    assert "1/1  " not in capsys.readouterr().out  # nothing left to do
    member(second, 6, OWN)
    assert main(command) == 0
    assert (tmp_path / "out/photo.png").read_bytes() != before


def test_every_member_is_recorded_on_a_gpu(runs, monkeypatch):
    seen: list[Any] = []

    class Fake(recording.Recorded):
        def __init__(self, model: Any) -> None:
            seen.append(model)

        def coarse(self, images: torch.Tensor) -> Any:
            raise AssertionError

    monkeypatch.setattr(recording, "Recorded", Fake)
    model = setr.load(runs).model
    for parameter in model.parameters():
        monkeypatch.setattr(type(parameter), "device", torch.device("cuda"), raising=False)
        break
    wrapped = recording.recorded(model)
    assert seen == list(model.members)
    assert [type(one) for one in wrapped.members] == [Fake] * 3


def test_a_server_averages_too(runs):
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from PIL import Image

    from setr.serve.limits import Limits
    from setr.serve.models import Models
    from tests.serving import running

    limits = Limits()
    joined = ",".join(map(str, runs[:2]))
    models = Models([joined, f"one={runs[0]}"], limits, device="cpu", precision="fp32")
    with running(models, limits) as (url, _), httpx.Client(base_url=url) as client:
        names = [model["name"] for model in client.get("/v1/models").json()["models"]]
        assert names == ["fold0+fold1", "one"]
        files = {"image": encode_png(image())}
        answer = client.post("/v1/segment", files=files, params={"format": "mask"})
        assert answer.status_code == 200, answer.text
        mask = np.asarray(Image.open(io.BytesIO(answer.content)))
        asked = {"x": 0.5, "y": 0.5, "model": "fold0+fold1"}
        refused = client.post("/v1/attention", files=files, params=asked)
        assert "ensemble" in refused.text
    assert np.array_equal(mask, setr.load(joined, precision="fp32").predict(image()).mask)


def test_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fold1", "fold0", "a,b", "fold[2]"):
        Path(name).mkdir()
        Path(name, "config.json").touch()
    Path("fold9").mkdir()  # not finished
    assert sources_of("fold0,fold1") == ["fold0", "fold1"]
    assert sources_of("fold*") == ["fold0", "fold1", "fold[2]"]
    assert sources_of("fold?,owner/name") == ["fold0", "fold1", "owner/name"]
    assert sources_of(["a,b", Path("fold1")]) == ["a,b", "fold1"]
    assert sources_of("a,b") == ["a,b"]  # it exists
    assert sources_of("fold[2]") == ["fold[2]"]
    assert sources_of("https://example.org/a,b.pth") == ["https://example.org/a,b.pth"]
    assert sources_of("owner/name@main") == ["owner/name@main"]
    assert name_of("runs/fold0,fold1") == "fold0+fold1"
    assert name_of("runs/fold0") == "fold0"
    for wrong, why in (("fold0,fold0", "twice"), ("fold*,fold0", "twice"), (",", "no model"),
                       ("none*", "no model directory matches"), ([], "no model")):  # fmt: skip
        with pytest.raises(SetrError, match=why) as caught:
            sources_of(wrong)
        assert caught.value.code == USAGE


def test_what_is_no_ensemble_is_refused_in_a_line(runs, tmp_path, capsys):
    classes = replace(OWN, labels=setr.Labels(tuple(f"c{i}" for i in range(K))))
    with pytest.raises(SetrError, match="other classes or bands"):
        setr.load([runs[0], member(tmp_path / "classes", 0, classes)])
    with pytest.raises(SetrError, match="other classes or bands"):
        setr.load([runs[0], member(tmp_path / "bands", 0, replace(OWN, bands=Bands((3, 2, 1))))])
    joined = ",".join(map(str, runs))
    picture = tmp_path / "photo.png"
    picture.write_bytes(encode_png(image()))
    commands = [
        ["export", joined, "--format", "onnx", "-o", str(tmp_path / "x.onnx")],
        ["adjust", joined, "scenes:3", "-o", str(tmp_path / "x")],
        ["explain", "attention", joined, str(picture), "-o", str(tmp_path / "x")],
    ]
    for command in commands:
        assert main(command) == USAGE, command
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "several models" in line, line
        assert not (tmp_path / "x").exists()
    missing = f"{runs[0]},{tmp_path / 'nothing'}"
    assert main(["predict", missing, str(picture), "-o", str(tmp_path / "x")]) == USAGE
    assert "nothing: no such model directory" in capsys.readouterr().err


def test_an_exported_file_is_no_member(runs, tmp_path, monkeypatch):
    from setr import opening
    from setr.exporting.runtime import ExportedModel

    def opened(path: Path, device: str) -> Any:
        return ExportedModel.__new__(ExportedModel), OWN

    monkeypatch.setattr(opening, "open_exported", opened)
    with pytest.raises(SetrError, match=r"model\.onnx: an exported file cannot be one of several"):
        setr.load([runs[0], tmp_path / "model.onnx"])


def test_a_test_protocol_of_the_first_is_used_for_all(runs, tmp_path):
    small = member(tmp_path / "small", 3, replace(OWN, protocol=Protocol(short_side=32)))
    predictor = setr.load([small, runs[0]], precision="fp32")
    alone = setr.load(runs[0], precision="fp32", protocol=Protocol(short_side=32)).predict(image())
    own = setr.load(small, precision="fp32").predict(image())
    mean = (own.scores + alone.scores) / 2
    assert np.abs(predictor.predict(image()).scores - mean).max() < 2e-6
