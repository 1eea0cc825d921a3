"""Testing a model on a split: figures, protocols, several processes, bad input, `setr eval`."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import setr
from setr import evaluation
from setr.cli import main
from setr.commands import eval as command
from setr.data import scenes
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE, SetrError
from setr.evaluation import evaluate as evaluate_with_workers
from setr.evaluation import evaluate_split
from setr.hub import save_pretrained
from setr.inference import normalize
from setr.labels import Labels
from setr.layers.precision import autocast_dtype
from setr.metrics import ConfusionMatrix
from setr.model_info import ModelInfo
from setr.pages.gallery import Gallery
from setr.protocols import Protocol
from setr.scores import scored_images
from setr.scores.split_loss import SplitLoss
from tests.conftest import tiny_model, write_scene_folders

evaluate = functools.partial(evaluate_with_workers, workers=0, precision="fp32")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two model directories and a data folder with five test images."""
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = tiny_model("naive", num_classes=9)
        save_pretrained(root / name, model, ModelInfo(labels=scenes.LABELS))
    write_scene_folders(root / "data", {"val": 2, "test": 5})
    return root


def test_figures_equal_the_plain_computation(runs):
    figures = evaluate(str(runs / "one"), runs / "data", split="test")
    predictor = setr.load(runs / "one", precision="fp32", device="cpu")
    dataset = open_dataset(str(runs / "data"), "test")
    counts = ConfusionMatrix(9)
    for i in range(len(dataset)):
        image, mask = dataset.load(i)
        x = normalize(torch.from_numpy(image)[None], predictor.info.mean, predictor.info.std)
        with torch.inference_mode():
            guess = predictor.model(x).argmax(dim=1)[0]
        counts.update(guess, torch.from_numpy(mask))
    expected = counts.summary(scenes.LABELS.classes)
    for key in ("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        assert figures[key] == pytest.approx(expected[key], abs=1e-4)
    moved = np.abs(np.array(figures["confusion"]) - counts.matrix).sum() / 2
    assert moved <= 2  # of 11 520 pixels, near-ties decided by the last bit
    assert figures["images"] == 5
    assert figures["protocol"] == "whole image"
    assert evaluate(predictor, dataset)["miou"] == figures["miou"]


def test_named_protocol_and_absent_rule(runs):
    paper = evaluate(runs / "one", runs / "data", protocol="paper-ms")
    assert "window 32x32, stride 22x22" in paper["protocol"]
    assert "flip" in paper["protocol"]
    zero = evaluate(runs / "one", runs / "data", absent="zero")
    assert zero["absent"] == "zero"
    with pytest.raises(SetrError, match="absent 'zeros': give skip or zero"):
        evaluate(runs / "one", runs / "data", absent="zeros")
    with pytest.raises(SetrError, match="give its ModelInfo"):
        evaluate(tiny_model(), runs / "data")


def _worker(rank: int, root: Path, out: Path, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2
    )
    figures = evaluate(root / "one", root / "data", **options)
    (out / f"{rank}.json").write_text(json.dumps(figures))
    torch.distributed.destroy_process_group()


def by_two_processes(root: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """The figures of `one` on `data` that each of two processes returns."""
    torch.multiprocessing.spawn(_worker, (root, out, options), nprocs=2)  # type: ignore[no-untyped-call]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_give_the_bits_of_one(runs, tmp_path):
    """Five images, so that the shares differ; one of them, of the second process, broken."""
    shutil.copytree(runs / "one", tmp_path / "one")
    data = write_scene_folders(tmp_path / "data", {"test": 5})
    (data / "images" / "test" / "scene_003.png").write_bytes(b"")
    single = evaluate(tmp_path / "one", data, split="test")
    assert (single["images"], len(single["failed"])) == (4, 1)
    for several in by_two_processes(tmp_path, tmp_path, split="test"):
        assert several.pop("seconds") > 0
        assert several == {k: v for k, v in single.items() if k != "seconds"}


def test_detailed_figures_are_there(runs):
    figures = evaluate(runs / "one", runs / "data", split="test")
    low, high = figures["intervals"]["miou"]
    assert low <= figures["miou"] <= high
    assert 0 <= figures["image_miou"] <= 1
    assert 0 <= figures["calibration"]["ece"] <= 1
    assert sum(figures["calibration"]["pixels"]) == np.sum(figures["confusion"])
    assert set(figures["recall_by_size"]) == {"small", "medium", "large"}
    plain = evaluate(runs / "one", runs / "data", split="test", detailed=False)
    assert "boundary" not in plain
    assert plain["miou"] == figures["miou"]


def test_gallery_keeps_the_extremes(runs, tmp_path):
    gallery = Gallery(shown=2)
    evaluate(runs / "one", runs / "data", split="test", on_image=gallery)
    mious = [row[1] for row in gallery.rows.values()]
    assert len(mious) == 5
    assert [t.figures["miou"] for t in gallery.worst] == sorted(mious)[:2]
    assert [t.figures["miou"] for t in gallery.best] == sorted(mious, reverse=True)[:2]
    gallery.write_csv(tmp_path / "images.csv")
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert [row["image"] for row in rows] == [f"images/test/scene_{i:03d}.png" for i in range(5)]
    assert float(rows[0]["miou"]) == pytest.approx(gallery.rows[0][1])


def test_images_of_one_file_name_are_told_apart(runs, tmp_path, capsys):
    for kind in ("images", "labels"):
        for number, folder in enumerate("ab"):
            (tmp_path / kind / "val" / folder).mkdir(parents=True)
            source = runs / "data" / kind / "test" / f"scene_00{number}.png"
            shutil.copy(source, tmp_path / kind / "val" / folder / "1.png")
    shutil.copy(runs / "data" / "data.yaml", tmp_path)
    run(capsys, runs / "one", tmp_path, "-o", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "images.csv").open()))
    assert [row["image"] for row in rows] == ["images/val/a/1.png", "images/val/b/1.png"]
    assert "images/val/b/1.png" in (tmp_path / "out" / "report.html").read_text()


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = main(["eval", *map(str, arguments), "--workers", "0", "--precision", "fp32"])
    return code, *capsys.readouterr()


def test_command_writes_everything(runs, tmp_path, capsys):
    out = tmp_path / "out"
    code, text, errors = run(
        capsys, runs / "one", runs / "data", "--split", "test", "--multi-scale", "--json", "-o", out
    )
    assert code == OK
    metrics = json.loads(text)
    assert set(metrics) == {"single_scale", "multi_scale"}
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert len((out / "images.csv").read_text().splitlines()) == 6
    assert "<svg" in (out / "report.html").read_text()
    assert str(out) in errors


@pytest.mark.parametrize(
    ("options", "described", "key"),
    [
        (["--protocol", "paper-ss"], "window 32x32, stride 22x22; short side raised", "single"),
        (["--protocol", "mmseg-ms"], "scales 0.5, 0.75", "multi"),
        (["--protocol", "whole"], "whole image", "single"),
        (["--protocol", "paper-ss:ade20k", "--short-side", 64, "--window", 48, 48, "--stride", 40,
          40], "short side 64; long side at most 2048; window 48x48, stride 40x40", "single"),
        (["--scales", 1, 0.5, "--flip"], "scales 1, 0.5; flip; whole image", "multi"),
    ],
)  # fmt: skip
def test_command_protocols(runs, tmp_path, capsys, options, described, key):
    code, text, _ = run(capsys, runs / "one", runs / "data", *options, "--json", "-o", tmp_path)
    assert code == OK
    assert described in json.loads(text)[f"{key}_scale"]["protocol"]


@pytest.mark.parametrize("options", [["--protocol", "whole"], ["--protocol", "mmseg-ss"], []])
def test_command_also_tests_with_several_scales(runs, tmp_path, capsys, options):
    arguments = [runs / "one", runs / "data", *options, "--multi-scale", "--no-detailed"]
    code, text, _ = run(capsys, *arguments, "--json", "-o", tmp_path)
    assert code == OK
    figures = json.loads(text)
    assert list(figures) == ["single_scale", "multi_scale"]
    assert "scales 0.5, 0.75" in figures["multi_scale"]["protocol"]
    assert "scales" not in figures["single_scale"]["protocol"]


def test_command_without_the_detailed_figures(runs, tmp_path, capsys):
    arguments = [runs / "one", runs / "data", "-o", tmp_path, "--compare", runs / "two"]
    assert run(capsys, *arguments)[0] == OK
    whole = json.loads((tmp_path / "metrics.json").read_text())
    code, text, errors = run(capsys, *arguments, "--no-detailed")
    assert code == OK
    assert "boundary" not in text
    assert "one against two" in text
    assert "metrics.json, images.csv\n" in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.csv", "metrics.json"]
    plain = json.loads((tmp_path / "metrics.json").read_text())
    assert plain["single_scale"]["iou"] == whole["single_scale"]["iou"]
    assert plain["compare"][str(runs / "two")]["against"] == whole["compare"][str(runs / "two")][
        "against"
    ]  # fmt: skip


def test_precision_of_builds_without_onednn(monkeypatch):
    """Wheels for macOS on ARM lack the operator that tells whether bf16 is fast."""
    cpu, question = torch.device("cpu"), "_is_mkldnn_bf16_supported"
    asked: list[int] = []
    fake = SimpleNamespace(**{question: lambda: asked.append(1) or True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", fake)
    assert autocast_dtype("fp32", cpu) is None
    assert not asked
    assert autocast_dtype("auto", cpu) is torch.bfloat16
    delattr(fake, question)
    for precision in ("auto", "fp32"):
        assert autocast_dtype(precision, cpu) is None
    with pytest.raises(SetrError, match="this cpu does not support it"):
        autocast_dtype("bf16", cpu)


def test_command_compares_models(runs, tmp_path, capsys):
    arguments = [runs / "one", runs / "data", "--split", "test", "-o", tmp_path]
    code, text, _ = run(capsys, *arguments, "--compare", runs / "two")
    assert code == OK
    assert "one against two" in text
    assert "p = " in text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    other = metrics["compare"][str(runs / "two")]
    assert other["against"]["images"] == 5
    difference = metrics["single_scale"]["image_miou"] - other["image_miou"]
    assert other["against"]["difference"] == pytest.approx(difference)
    assert run(capsys, *arguments, "--compare", runs / "one")[0] == USAGE


def test_a_place_where_nothing_can_be_written_is_refused_before_the_test(runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to("gone")
    for name, message in (("file/x", "Not a directory"), ("dead", "leads nowhere")):
        code, _, errors = run(capsys, runs / "one", runs / "data", "-o", tmp_path / name)
        assert code == USAGE
        assert message in errors
        assert "eval " not in errors


def test_the_figures_of_a_training_are_not_replaced_by_those_of_a_test(runs, capsys):
    code, _, errors = run(capsys, runs / "one", runs / "data", "-o", runs / "two")
    assert code == USAGE
    assert "two: holds a model, whose own metrics.json" in errors


def test_the_figures_are_printed_though_the_disk_is_full(runs, tmp_path, capsys, monkeypatch):
    def full(path: Path, data: bytes, **_: object) -> None:
        raise SetrError(f"{path}: cannot write: No space left on device")

    monkeypatch.setattr("setr.writing.write_bytes", full)
    options = ["--json", "-o", tmp_path / "x", "--compare", runs / "two"]
    code, text, errors = run(capsys, runs / "one", runs / "data", *options)
    assert code == FAILED
    assert str(runs / "two") in json.loads(text)["compare"]
    assert "No space left" in errors


def test_a_truncated_image_is_named_and_counted(runs, tmp_path, capsys):
    data = write_scene_folders(tmp_path / "data", {"val": 3})
    broken = data / "images" / "val" / "scene_001.png"
    broken.write_bytes(broken.read_bytes()[:900])
    code, text, errors = run(capsys, runs / "one", data, "--json", "-o", tmp_path)
    figures = json.loads(text)["single_scale"]
    assert code == FAILED
    assert figures["images"] == 2
    assert "scene_001.png" in figures["failed"][0]
    assert "1 of 3 images failed" in errors
    assert "scene_001.png" in (tmp_path / "report.html").read_text()


def test_a_mirrored_test_is_of_one_scale(runs, tmp_path, capsys):
    arguments = [runs / "one", runs / "data", "--no-detailed", "--json", "-o", tmp_path]
    code, text, _ = run(capsys, *arguments, "--flip", "--multi-scale")
    assert code == OK
    figures = json.loads(text)
    assert {k: v["protocol"] for k, v in figures.items()} == {
        "single_scale": "flip; whole image",
        "multi_scale": "scales 0.5, 0.75, 1, 1.25, 1.5, 1.75; flip; whole image",
    }
    code, text, _ = run(capsys, *arguments, "--protocol", "paper-ss", "--no-flip", "--multi-scale")
    assert code == OK
    assert not any("flip" in found["protocol"] for found in json.loads(text).values())
    code, _, errors = run(capsys, *arguments, "--flip", "--no-flip")
    assert (code, errors) == (USAGE, "setr: --flip and --no-flip: give one of them\n")
    for scales in ((0.5,), (1, 2)):
        code, _, errors = run(capsys, *arguments, "--scales", *scales, "--multi-scale")
        assert code == USAGE
        assert "--multi-scale has scales of its own" in errors


def test_every_scale_of_compared_models_is_shown(runs, tmp_path, capsys):
    options = ["-o", tmp_path, "--compare", runs / "two", "--multi-scale"]
    code, text, _ = run(capsys, runs / "one", runs / "data", *options)
    assert code == OK
    heads = ("one", "one, multi scale", "two", "two, multi scale")
    assert text.splitlines()[0].split("  ")[-1].strip() == heads[-1]
    assert [text.index(f"  {name}") for name in heads] == sorted(
        text.index(f"  {name}") for name in heads
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    other = metrics["compare"][str(runs / "two")]
    alone = evaluate(runs / "two", runs / "data")
    assert other["iou"] == alone["iou"]
    assert "flip" in other["multi_scale"]["protocol"]
    page = (tmp_path / "report.html").read_text()
    assert "<td>two, multi scale</td>" in page
    assert page.count("this model, multi scale") == 1


def test_an_image_that_would_be_enlarged_too_far_is_named_and_counted(runs, tmp_path, capsys):
    data = write_scene_folders(tmp_path / "data", {"val": 2})
    for kind, shape in (("images", (1, 3000, 3)), ("labels", (1, 3000))):
        cv2.imwrite(str(data / kind / "val" / "scene_000.png"), np.zeros(shape, np.uint8))
    options = ["--short-side", 300, "--json", "-o", tmp_path]
    code, text, errors = run(capsys, runs / "one", data, *options)
    assert code == FAILED
    figures = json.loads(text)["single_scale"]
    assert figures["images"] == 1
    assert "scene_000.png: an image of 3000x1 would be enlarged" in figures["failed"][0]
    assert "1 of 2 images failed" in errors


def one_line(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    code, _, errors = run(capsys, *arguments)
    (line,) = [row for row in errors.splitlines() if row.startswith("setr: ")]
    return code, line


def test_other_classes_are_refused(runs, tmp_path, capsys):
    data = write_scene_folders(tmp_path / "data", {"val": 1})
    names = list(scenes.CLASSES)
    (data / "data.yaml").write_text(f"classes: [{', '.join([*names, 'more'])}]\n")
    code, line = one_line(capsys, runs / "one", data)
    assert (code, "has 9 classes but data has 10" in line) == (DATA_CHECK_FAILED, True)
    swapped = [names[1], names[0], *names[2:]]
    (data / "data.yaml").write_text(f"classes: [{', '.join(swapped)}]\n")
    code, line = one_line(capsys, runs / "one", data)
    assert (code, "class 0 is 'sky' in the model but 'hill'" in line) == (DATA_CHECK_FAILED, True)


def test_data_without_labels_or_images(runs, tmp_path, capsys):
    data = write_scene_folders(tmp_path / "data", {"val": 2})
    for mask in (data / "labels" / "val").iterdir():
        mask.unlink()
    code, line = one_line(capsys, runs / "one", data)
    assert code == DATA_CHECK_FAILED
    assert "labels/val" in line
    assert one_line(capsys, runs / "one", data, "--split", "test")[0] == DATA_CHECK_FAILED
    code, line = one_line(capsys, runs / "one", tmp_path / "nowhere")
    assert (code, "no such file or folder" in line) == (USAGE, True)


def test_empty_split_and_nothing_readable(runs, tmp_path):
    predictor = setr.load(runs / "one")
    dataset = open_dataset(str(runs / "data"), "test")
    with pytest.raises(SetrError, match="has no images"):
        evaluate(predictor, dataclasses.replace(dataset, pairs=()))
    data = write_scene_folders(tmp_path / "data", {"val": 1})
    (data / "images" / "val" / "scene_000.png").write_bytes(b"")
    with pytest.raises(SetrError, match=r"none of the 1 images .*scene_000\.png"):
        evaluate(predictor, str(data))


def test_broken_weights_are_an_error_not_a_figure(runs):
    model = tiny_model("naive", num_classes=9)
    with torch.no_grad():
        next(iter(model.decoder.parameters())).fill_(float("nan"))
    dataset = open_dataset(str(runs / "data"), "val")
    with pytest.raises(SetrError, match=r"scene_000\.png: the model's scores are not numbers"):
        evaluate_split(model, ModelInfo(labels=scenes.LABELS), dataset)


def test_images_tested_together_have_the_figures_of_each(runs, tmp_path, monkeypatch):
    data = write_scene_folders(tmp_path / "data", {"val": 7})
    (data / "images" / "val" / "scene_002.png").write_bytes(b"")
    wide = data / "images" / "val" / "scene_005.png", data / "labels" / "val" / "scene_005.png"
    for path in wide:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.ascontiguousarray(pixels[:-5]))
    found, losses, sizes, batches = [], [], [], list[int]()
    original = scored_images.predict_mask

    def predict(model: Any, images: Any, *arguments: Any, **keywords: Any) -> Any:
        """The first time two images find no memory."""
        batches.append(images.shape[0])
        if batches.count(2) == 1 and batches[-1] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, images, *arguments, **keywords)

    monkeypatch.setattr(scored_images, "predict_mask", predict)
    for together in (1, 3):
        monkeypatch.setitem(scored_images.MAX_GROUP, "cpu", together)
        predictor, seen = setr.load(runs / "one", precision="fp32"), []
        dataset = open_dataset(str(data), "val", predictor.info.labels)
        figures = evaluate_split(
            predictor.network, predictor.info, dataset, loss=SplitLoss(), on_image=seen.append
        )
        del figures["seconds"]
        losses.append(figures.pop("loss"))
        found.append(figures)
        sizes.append([(image.number, image.prediction.shape) for image in seen])
    assert found[0] == found[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(found[0]["failed"]) == 1
    assert sizes[0] == sizes[1]
    assert [number for number, _ in sizes[0]] == [0, 1, 3, 4, 5, 6]
    assert batches == [1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("protocol", "num_classes", "size", "most"),
    [
        (Protocol(), 11, (360, 480), 24),
        (Protocol(), 2, (1024, 1024), 4),  # 25 million pixels in a pass would not fit everywhere
        (Protocol(scales=(0.5, 1.0, 1.75)), 11, (360, 480), 7),
        (Protocol(window=(512, 512), stride=(341, 341)), 2, (1024, 1024), 16),
        (Protocol(), 150, (512, 512), 1),
        (Protocol(), 2, (4096, 4096), 1),
    ],
)
def test_images_together_fill_one_pass(protocol, num_classes, size, most):
    found = scored_images.max_together(torch.device("cuda"), protocol, num_classes, *size)
    assert found == most
    assert scored_images.max_together(torch.device("cpu"), protocol, num_classes, *size) == 1


def test_unknown_protocol_names_the_nearest(runs, capsys):
    code, line = one_line(capsys, runs / "one", runs / "data", "--protocol", "paper-sss")
    assert (code, "did you mean 'paper-ss'" in line) == (USAGE, True)


def test_stored_protocol_is_the_default(runs, tmp_path):
    torch.manual_seed(0)
    protocol = Protocol(window=(32, 32), stride=(16, 16), short_side=40)
    labels = Labels(tuple(scenes.CLASSES))
    save_pretrained(tmp_path, tiny_model(num_classes=9), ModelInfo(labels, protocol=protocol))
    figures = evaluate(tmp_path, runs / "data")
    assert figures["protocol"] == "short side 40; window 32x32, stride 16x16"


def test_models_of_one_name_are_told_apart_by_their_paths(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [f"seed{seed}/model" for seed in range(3)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        model = tiny_model("naive", num_classes=9)
        save_pretrained(path, model, ModelInfo(labels=scenes.LABELS))
    code, text, _ = run(capsys, paths[0], "scenes:20", "--compare", *paths[1:], "-o", "out")
    assert code == OK
    metrics = json.loads(Path("out/metrics.json").read_text())
    mious = [metrics["single_scale"]["miou"], *(m["miou"] for m in metrics["compare"].values())]
    assert len(set(mious)) == 3
    assert text.splitlines()[0].split()[-3:] == paths
    (row,) = [line for line in text.splitlines() if line.startswith("mIoU  ")]
    assert row.split()[1:] == [f"{100 * miou:.2f}" for miou in mious]
    for path in paths[1:]:
        assert f"{paths[0]} against {path}: " in text
        assert f"<td>{path}</td>" in Path("out/report.html").read_text()


def test_a_comparison_with_other_classes_is_refused_before_the_first_test(
    runs, tmp_path, capsys, monkeypatch
):
    """Also where the data names no classes, so that each model would bring its own."""
    (write_scene_folders(tmp_path / "data", {"val": 1}) / "data.yaml").unlink()
    names = tuple("abcde")
    save_pretrained(tmp_path / "other", tiny_model(num_classes=5), ModelInfo(labels=Labels(names)))
    monkeypatch.setattr("setr.evaluation.evaluate_split", lambda *_, **__: pytest.fail("tested"))
    arguments = [runs / "one", tmp_path / "data", "--compare", tmp_path / "other"]
    code, line = one_line(capsys, *arguments)
    assert code == DATA_CHECK_FAILED
    assert f"{tmp_path / 'other'}: the model has 5 classes but data has 9" in line


def test_a_comparison_that_fails_leaves_the_figures(runs, tmp_path, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise SetrError("scores are NaN")

    monkeypatch.setattr("setr.pages.gallery.paired", fail)
    arguments = [runs / "one", runs / "data", "--compare", runs / "two", "-o", tmp_path]
    assert one_line(capsys, *arguments) == (FAILED, "setr: scores are NaN")
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["single_scale"]
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.json", "images.csv", "report.html"}


def test_a_predictor_is_tested_in_its_own_precision(runs, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "evaluate_split", lambda *_, **options: asked.append(options))
    predictor = setr.load(runs / "one", precision="fp32", device="cpu")
    evaluate_with_workers(predictor, runs / "data")
    evaluate_with_workers(predictor, runs / "data", precision="auto")
    evaluate_with_workers(predictor.model, runs / "data", info=predictor.info)
    assert asked == [{"precision": "fp32"}, {"precision": "auto"}, {}]


def test_the_given_info_goes_before_the_models_own(runs, monkeypatch):
    asked = []
    monkeypatch.setattr(
        evaluation, "evaluate_split", lambda _, info, *rest, **_k: asked.append(info)
    )
    predictor = setr.load(runs / "one", precision="fp32", device="cpu")
    other = dataclasses.replace(predictor.info, mean=(0.1, 0.2, 0.3))
    for model in (runs / "one", predictor, predictor.model):
        evaluate_with_workers(model, runs / "data", info=other)
    assert [info.mean for info in asked] == [other.mean] * 3


def test_files_of_one_name_have_figures_of_their_own():
    def place(model: str) -> str:
        return command._out(command.Arguments(model=model, data="d")).as_posix()

    assert place("owner/name") == "runs/name/eval-val"
    here = Path(__file__)
    assert place(str(here)) == f"runs/tests-{here.name}/eval-val"


def test_a_hub_name_stays_as_it_is_written(runs, monkeypatch):
    """A Path of Windows would turn its slash around."""
    asked = []
    monkeypatch.setattr(
        "setr.opening.model_folder", lambda source: asked.append(source) or runs / "one"
    )
    evaluate("owner/name", runs / "data")
    assert asked == ["owner/name"]
    assert isinstance(asked[0], str)


@pytest.mark.parametrize("count", [0, -1])
def test_no_image_is_no_test(runs, count):
    with pytest.raises(SetrError, match=f"count {count}: give at least one image") as caught:
        evaluate(runs / "one", runs / "data", count=count)
    assert caught.value.code == USAGE
    assert evaluate(runs / "one", runs / "data", count=1)["images"] == 1


def test_fewer_than_no_workers_are_refused(runs):
    with pytest.raises(SetrError, match="workers -1: give 0 or more"):
        evaluate(runs / "one", runs / "data", workers=-1)


def test_a_test_that_fails_restores_the_mode(runs):
    predictor = setr.load(runs / "one", device="cpu")
    model = predictor.network.train()

    def fail(_: object) -> None:
        raise KeyboardInterrupt

    dataset = open_dataset(str(runs / "data"), "val")
    with pytest.raises(KeyboardInterrupt):
        evaluate_split(model, predictor.info, dataset, workers=0, on_image=fail)
    assert all(m.training for m in model.modules())


def test_a_models_mode_is_restored(runs):
    dataset = open_dataset(str(runs / "data"), "val")
    model = tiny_model("naive", num_classes=9)
    for training in (True, False):
        evaluate_split(
            model.train(training),
            ModelInfo(labels=scenes.LABELS),
            dataset,
            detailed=False,
            workers=0,
            precision="fp32",
        )
        assert model.training is training
